"""The library: LoRAs that an account has, made by its jobs or sent in."""
