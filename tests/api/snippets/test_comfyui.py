"""The workflow for ComfyUI fits together, by what is known of its nodes. ComfyUI itself is not run."""

import json
from pathlib import Path

import pytest

import api

WORKFLOW = Path(api.__file__).parent / "snippets" / "comfyui.json"

# What ComfyUI's own nodes take and give: the type of a link in capitals, or the Python type of a value.
TAKES = {
    "CheckpointLoaderSimple": {"ckpt_name": str},
    "LoraLoader": {
        "model": "MODEL",
        "clip": "CLIP",
        "lora_name": str,
        "strength_model": float,
        "strength_clip": float,
    },
    "CLIPTextEncode": {"clip": "CLIP", "text": str},
    "EmptyLatentImage": {"width": int, "height": int, "batch_size": int},
    "KSampler": {
        "model": "MODEL",
        "positive": "CONDITIONING",
        "negative": "CONDITIONING",
        "latent_image": "LATENT",
        "seed": int,
        "steps": int,
        "cfg": float,
        "sampler_name": str,
        "scheduler": str,
        "denoise": float,
    },
    "VAEDecode": {"samples": "LATENT", "vae": "VAE"},
    "SaveImage": {"images": "IMAGE", "filename_prefix": str},
}
GIVES = {
    "CheckpointLoaderSimple": ["MODEL", "CLIP", "VAE"],
    "LoraLoader": ["MODEL", "CLIP"],
    "CLIPTextEncode": ["CONDITIONING"],
    "EmptyLatentImage": ["LATENT"],
    "KSampler": ["LATENT"],
    "VAEDecode": ["IMAGE"],
    "SaveImage": [],
}


@pytest.fixture
def nodes():
    return json.loads(WORKFLOW.read_text())


def only(nodes, class_type):
    (found,) = (node for node in nodes.values() if node["class_type"] == class_type)
    return found["inputs"]


def test_it_has_each_node_once_and_a_text_for_either_prompt(nodes):
    kinds = sorted(node["class_type"] for node in nodes.values())
    assert kinds == sorted([*TAKES, "CLIPTextEncode"])


def test_every_input_is_there_and_of_the_type_that_its_node_takes(nodes):
    for node in nodes.values():
        wanted = TAKES[node["class_type"]]
        assert set(node["inputs"]) == set(wanted)
        for name, kind in wanted.items():
            given = node["inputs"][name]
            if isinstance(kind, type):
                assert type(given) is kind, name
            else:
                source, place = given
                assert GIVES[nodes[source]["class_type"]][place] == kind, name


def test_every_node_has_a_part_in_the_picture(nodes):
    last = next(name for name, node in nodes.items() if node["class_type"] == "SaveImage")
    reached, queue = {last}, [last]
    while queue:
        for given in nodes[queue.pop()]["inputs"].values():
            if isinstance(given, list) and given[0] not in reached:
                reached.add(given[0])
                queue.append(given[0])
    assert reached == set(nodes)


def test_sampling_and_words_go_through_the_lora_and_the_prompts_are_not_mixed_up(nodes):
    sampler = only(nodes, "KSampler")
    assert nodes[sampler["model"][0]]["class_type"] == "LoraLoader"
    texts = {side: nodes[sampler[side][0]]["inputs"] for side in ("positive", "negative")}
    assert {nodes[text["clip"][0]]["class_type"] for text in texts.values()} == {"LoraLoader"}
    assert "sbu" in texts["positive"]["text"]
    assert "szn" in texts["positive"]["text"]
    assert texts["negative"]["text"] == ""
