import torch
from diffusers import AutoPipelineForText2Image

base = "duolora/tiny/base"  # folder or Hugging Face id of the model that the LoRA was trained for
lora = "out/merged.diffusers.safetensors"
prompt = "a sbu animal in szn style"
side_px = 64

pipe = AutoPipelineForText2Image.from_pretrained(base, torch_dtype=torch.float32)
pipe.load_lora_weights(lora)
pipe(prompt, height=side_px, width=side_px).images[0].save("picture.png")
