"""DuoLoRA: train a content LoRA and a style LoRA, merge them into one, with no service anywhere.

Importing the package is cheap: torch is imported only by the modules that compute.
"""
