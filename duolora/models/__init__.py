"""The families of base models: one file each, the only places that know a family's parts and layer names."""
