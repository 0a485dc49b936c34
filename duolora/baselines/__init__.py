"""What a user would pick instead: other ways to a subject in a style, each from its paper's formulas, one file each.

Merges take two trained LoRAs: `merge(base, cases, *, knobs) -> list[LoraWeights]`, a `MergeCase` in, an ordinary LoRA
out. Recipes take pictures: `train(base, cases, config, observer) -> list[LoraWeights]`, a `RecipeCase` in. K-LoRA has
no file to give and is sampled with: `attach(base, cases, *, knobs)` returns an adapter. All cases of a call share the
passes of the U-Net, and none feels the others.

| file | paper | call | cost | knobs |
| --- | --- | --- | --- | --- |
| weighted_sum | - | merge | none | content_weight, style_weight |
| zip_lora | 2311.13600 | merge | 100 steps | steps, learning_rate, similarity_weight, start, batch_size |
| duolora_release | 2504.13206 | merge | 100 steps, 6 teacher samples each | the same but for the similarity; |
| | | | | prior_weight, constyle_weight, prior_blocks |
| np_lora | 2511.11051 | merge | a thin SVD a layer | mu, directions |
| ssr_merge | 2606.10617 | merge | `samples` forward passes a side | ridge, samples |
| peft_merges | peft's own | merge | an SVD of every dense change | combination, weights, density, rank |
| k_lora | 2502.18461 | attach | a top-K of every dense change; slower sampling | alpha, beta, balance |
| b_lora | 2403.14572 | train | two trainings, of two blocks | config, content_block, style_block |
| joint_training | 2311.13600 | train | one training | config |
"""
