"""The families of base models: one file each with all that a family's files and U-Net inputs do differently."""
