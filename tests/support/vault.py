"""The keys by which tests seal secrets, in this process and in those that it starts."""

from api.vault import Vault

SECRET_KEYS = "f3b1c8a6d92e47508b6f1a2c3d4e5f60718293a4b5c6d7e8"
VAULT = Vault([SECRET_KEYS])
