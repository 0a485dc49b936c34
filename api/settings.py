"""Process settings from the environment. Built in entry points and passed down; nothing else reads the environment."""

from __future__ import annotations

from ipaddress import IPv4Network, IPv6Network
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field, SecretStr, field_validator
from pydantic_settings import BaseSettings, EnvSettingsSource, NoDecode, SettingsConfigDict

from api.vault import Vault
from api.weak_secrets import check_secret, check_url

if TYPE_CHECKING:
    from pydantic.fields import FieldInfo
    from pydantic_settings import PydanticBaseSettingsSource

Network = IPv4Network | IPv6Network

MIB = 1024 * 1024


class DatabaseSettings(BaseSettings):
    """Where the rows live: DATABASE_URL, DATABASE_POOL_SIZE."""

    model_config = SettingsConfigDict(env_prefix="DATABASE_", frozen=True, hide_input_in_errors=True)

    url: SecretStr
    """`postgresql+psycopg://user:password@host:port/name`."""
    pool_size: int = Field(10, ge=1, le=100)

    @field_validator("url")
    @classmethod
    def _is_protected(cls, url: SecretStr) -> SecretStr:
        check_url(url.get_secret_value())
        return url


class RedisSettings(BaseSettings):
    """Where the hints go: REDIS_URL. The API counts requests there, and works without."""

    model_config = SettingsConfigDict(env_prefix="REDIS_", frozen=True, hide_input_in_errors=True)

    url: SecretStr
    """`redis://...`, `unix://...` or Celery's `redis+socket://...`."""

    @field_validator("url")
    @classmethod
    def _is_protected(cls, url: SecretStr) -> SecretStr:
        check_url(url.get_secret_value())
        return url


class StoreSettings(BaseSettings):
    """The S3 store: S3_ENDPOINT, S3_PUBLIC_ENDPOINT, S3_BUCKET, S3_ACCESS_KEY_ID, S3_SECRET_ACCESS_KEY, S3_REGION."""

    model_config = SettingsConfigDict(env_prefix="S3_", frozen=True, hide_input_in_errors=True)

    endpoint: str
    """URL by which the services reach the store."""
    public_endpoint: str | None = None
    """URL by which callers reach it; signed into their links. None: the same as `endpoint`."""
    bucket: str = Field("duolora", min_length=3, max_length=63)
    access_key_id: SecretStr = Field(min_length=1)
    secret_access_key: SecretStr = Field(min_length=8)
    region: str = "us-east-1"

    @field_validator("secret_access_key")
    @classmethod
    def _is_ours(cls, secret: SecretStr) -> SecretStr:
        check_secret(secret.get_secret_value())
        return secret


class SealSettings(BaseSettings):
    """By what secrets are sealed in the database: SECRET_KEYS. See `api.vault`."""

    model_config = SettingsConfigDict(env_prefix="SECRET_", frozen=True, hide_input_in_errors=True)

    keys: SecretStr
    """Comma-separated, the newest first; each 32 random characters or more. A replaced one stays behind the new one
    until the dispatcher has sealed everything anew."""

    @field_validator("keys")
    @classmethod
    def _are_keys(cls, keys: SecretStr) -> SecretStr:
        check_secret(keys.get_secret_value())
        Vault(_split(keys))
        return keys

    def vault(self) -> Vault:
        """Return the vault with these keys."""
        return Vault(_split(self.keys))


def _split(keys: SecretStr) -> list[str]:
    return [key for part in keys.get_secret_value().split(",") if (key := part.strip())]


class WebhookSettings(BaseSettings):
    """Outgoing webhooks: WEBHOOK_ALLOW_CIDRS, WEBHOOK_TIMEOUT_S, WEBHOOK_PREVIOUS_SECRET_H."""

    model_config = SettingsConfigDict(env_prefix="WEBHOOK_", frozen=True)

    allow_cidrs: Annotated[tuple[Network, ...], NoDecode] = ()
    """Comma-separated networks that may be reached although they are not public, by http and on any port."""
    timeout_s: float = Field(20, gt=0, le=30)
    """Longest a whole delivery may take, from name lookup to the last byte read."""
    time_scale: float = Field(1, gt=0, le=1)
    """Factor of every wait of the schedule: a test lives through three days in a minute."""
    previous_secret_h: float = Field(24, ge=0)
    """How long a replaced secret signs as well."""

    @field_validator("allow_cidrs", mode="before")
    @classmethod
    def _split(cls, value: object) -> object:
        return tuple(part.strip() for part in value.split(",") if part.strip()) if isinstance(value, str) else value


class RateSettings(BaseSettings):
    """How many requests a key may make: RATE_LIMIT_REQUESTS in every RATE_LIMIT_WINDOW_S."""

    model_config = SettingsConfigDict(env_prefix="RATE_LIMIT_", frozen=True)

    requests: int = Field(6000, ge=0)
    """0 for any number."""
    window_s: int = Field(60, ge=1, le=86_400)


class ImageLimits(BaseSettings):
    """What is accepted as a picture: IMAGE_MAX_BYTES, IMAGE_MAX_PIXELS, IMAGE_MIN_SIDE_PX and so on."""

    model_config = SettingsConfigDict(env_prefix="IMAGE_", frozen=True)

    max_bytes: int = Field(25 * MIB, ge=1)
    max_pixels: int = Field(50_000_000, ge=1, le=80_000_000)
    """Width times height, read from the header before anything is decoded."""
    min_side_px: int = Field(32, ge=1)
    keep_side_px: int = Field(2048, ge=64)
    """A picture whose shorter side is longer is scaled down to it: no training resolution is higher."""
    parallel: int = Field(2, ge=1)
    """Submissions whose pictures are decoded at once; each may need some hundred megabytes. Others wait."""
    wait_s: float = Field(10, gt=0, le=60)
    """How long they wait before they are asked to come again."""
    cpu_s: int = Field(20, ge=1)
    """Seconds of computing that decoding one picture may take."""
    timeout_s: float = Field(60, gt=0)
    """Seconds by the clock that it may take, on a machine that is busy with other things."""
    memory_bytes: int = Field(2048 * MIB, ge=256 * MIB)
    """Address space of the process that decodes it."""


class UploadSettings(BaseSettings):
    """Files that come before their job: UPLOAD_LIFETIME_H, UPLOAD_LINK_LIFETIME_S."""

    model_config = SettingsConfigDict(env_prefix="UPLOAD_", frozen=True)

    lifetime_h: float = Field(24, gt=0, le=24 * 365)
    """How long an upload is kept; jobs that were submitted with it have copies of their own."""
    link_lifetime_s: int = Field(3600, ge=60, le=604_800)
    """How long a link to write to works, if the upload itself does not end sooner."""


class MetricsSettings(BaseSettings):
    """Where Prometheus asks a process: METRICS_PORT, METRICS_HOST. Processes of one machine need ports of their own."""

    model_config = SettingsConfigDict(env_prefix="METRICS_", frozen=True)

    port: int | None = Field(None, ge=0, le=65535)
    """None: nothing listens. 0: any free port, which the log names."""
    host: str = "127.0.0.1"


class TracingSettings(BaseSettings):
    """Where spans go: OTEL_EXPORTER_OTLP_ENDPOINT, OTEL_SDK_DISABLED. The SDK reads its other variables itself."""

    model_config = SettingsConfigDict(env_prefix="OTEL_", frozen=True)

    exporter_otlp_endpoint: str | None = None
    """URL of a collector that takes OTLP by HTTP. None: no spans are made."""
    sdk_disabled: bool = False


class ProcessSettings(BaseSettings):
    """Base of a process's settings. Its parts read their own variables, never one variable that has their name.

    Otherwise DATABASE or ENGINE, set in the shell for something else, would be read as JSON and break the start.
    """

    model_config = SettingsConfigDict(frozen=True)

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,  # noqa: ARG003 - pydantic's signature
        dotenv_settings: PydanticBaseSettingsSource,  # noqa: ARG003
        file_secret_settings: PydanticBaseSettingsSource,  # noqa: ARG003
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Take arguments, then the environment without the parts."""
        return init_settings, _FlatEnvironment(settings_cls)


class _FlatEnvironment(EnvSettingsSource):
    """The environment, but for fields that are settings themselves."""

    def get_field_value(self, field: FieldInfo, field_name: str) -> tuple[Any, str, bool]:
        kind = field.annotation
        if isinstance(kind, type) and issubclass(kind, BaseSettings):
            return None, field_name, False
        return super().get_field_value(field, field_name)


class ApiSettings(ProcessSettings):
    """The HTTP process: HOST, PORT, PUBLIC_URL, BASE_MODELS, MAX_REQUEST_BYTES, LORA_MAX_BYTES and so on."""

    host: str = "127.0.0.1"
    port: int = Field(8000, ge=0, le=65535)
    public_url: str | None = None
    """Origin by which callers reach the API. None: taken from each request's Host header."""
    base_models: dict[str, str] = Field(default={"tiny": "tiny"}, min_length=1)
    """JSON object: name a caller may ask for -> location (folder, file or hub id) that the worker loads."""
    max_request_bytes: int = Field(400 * MIB, ge=1)
    lora_max_bytes: int = Field(384 * MIB, ge=1)
    """The largest LoRA file that may be sent in; a whole request is bounded by `max_request_bytes`."""
    lora_parallel: int = Field(2, ge=1)
    """So many such files are looked at and stored at a time; requests with others wait a little."""
    artifact_url_lifetime_s: int = Field(3600, ge=60, le=604_800)
    """How long a signed link works; 7 days is the most that SigV4 allows."""
    idempotency_ttl_s: int = Field(86_400, ge=60)
    """How long the outcome of a request with an Idempotency-Key is kept."""
    idempotency_lock_s: int = Field(120, ge=1)
    """After so long a request that has not ended counts as lost, and its key is free for another try."""
    sse_heartbeat_s: float = Field(15, gt=0)
    """Longest silence on a stream of events."""
    sse_replay_limit: int = Field(1000, ge=1)
    """Most events that a stream begins with; older ones are told of as a gap."""
    key_cache_s: float = Field(5, ge=0)
    """How long a key that was found good is not looked up again: how late a revocation may take effect."""
    dispatcher_retention_days: float = Field(30, gt=0)
    """How long the dispatcher keeps an ended job that asked for no time of its own: here it is only told to callers."""
    retention_max_days: int = Field(365, ge=1, le=3650)
    """The longest time that a job may ask for."""
    log_level: str = "INFO"

    database: DatabaseSettings = Field(default_factory=DatabaseSettings)
    redis: RedisSettings = Field(default_factory=RedisSettings)
    store: StoreSettings = Field(default_factory=StoreSettings)
    seals: SealSettings = Field(default_factory=SealSettings)
    webhooks: WebhookSettings = Field(default_factory=WebhookSettings)
    images: ImageLimits = Field(default_factory=ImageLimits)
    uploads: UploadSettings = Field(default_factory=UploadSettings)
    metrics: MetricsSettings = Field(default_factory=MetricsSettings)
    tracing: TracingSettings = Field(default_factory=TracingSettings)
    rates: RateSettings = Field(default_factory=RateSettings)

    @property
    def default_base_model(self) -> str:
        """Name of the base used when a request names none: the first that was configured."""
        return next(iter(self.base_models))
