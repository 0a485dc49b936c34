import pytest
from pydantic import ValidationError

from api.settings import ApiSettings, WebhookSettings

REQUIRED = {
    "DATABASE_URL": "postgresql+psycopg://u:swordfish@h/d",
    "REDIS_URL": "redis://:swordfish@h",
    "S3_ENDPOINT": "http://s3:8333",
    "S3_ACCESS_KEY_ID": "ak",
    "S3_SECRET_ACCESS_KEY": "swordfish",
    "SECRET_KEYS": "swordfish" * 4,
}


@pytest.fixture
def environment(monkeypatch):
    for name in ("BASE_MODELS", "WEBHOOK_ALLOW_CIDRS", "HOST", "PORT", *REQUIRED):
        monkeypatch.delenv(name, raising=False)
    for name, value in REQUIRED.items():
        monkeypatch.setenv(name, value)
    return monkeypatch


def test_settings_come_from_the_environment(environment):
    environment.setenv("BASE_MODELS", '{"sdxl": "/models/sdxl", "tiny": "tiny"}')
    environment.setenv("PORT", "9000")
    settings = ApiSettings()
    assert (settings.port, settings.host, settings.store.endpoint) == (9000, "127.0.0.1", "http://s3:8333")
    assert settings.default_base_model == "sdxl"


def test_a_variable_that_happens_to_have_the_name_of_a_part_is_not_ours(environment):
    expected = ApiSettings()
    for name in ("DATABASE", "REDIS", "STORE", "WEBHOOKS", "IMAGES", "images", "RATES"):
        environment.setenv(name, "mydb")
    assert ApiSettings() == expected


def test_limits_of_requests_and_times_of_keeping_come_from_it_too(environment):
    environment.setenv("RATE_LIMIT_REQUESTS", "5")
    environment.setenv("RATE_LIMIT_WINDOW_S", "1")
    environment.setenv("DISPATCHER_RETENTION_DAYS", "0.5")
    environment.setenv("RETENTION_MAX_DAYS", "7")
    settings = ApiSettings()
    assert (settings.rates.requests, settings.rates.window_s) == (5, 1)
    assert (settings.dispatcher_retention_days, settings.retention_max_days) == (0.5, 7)


def test_the_default_base_is_the_tiny_one(environment):
    assert ApiSettings().base_models == {"tiny": "tiny"}


def test_secrets_do_not_show(environment):
    assert "swordfish" not in repr(ApiSettings())


@pytest.mark.parametrize("name", REQUIRED)
def test_nothing_starts_without(environment, name):
    environment.delenv(name)
    with pytest.raises(ValidationError):
        ApiSettings()


@pytest.mark.parametrize("name", ["S3_ACCESS_KEY_ID", "S3_SECRET_ACCESS_KEY"])
def test_nothing_starts_with_an_empty_key(environment, name):
    environment.setenv(name, "")
    with pytest.raises(ValidationError):
        ApiSettings()


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("S3_SECRET_ACCESS_KEY", "minioadmin"),
        ("SECRET_KEYS", ""),
        ("SECRET_KEYS", " , "),
        ("SECRET_KEYS", "swordfish"),
        ("SECRET_KEYS", "swordfishswordfishswordfishswordfish,short"),
        ("S3_SECRET_ACCESS_KEY", "ChangeMe123"),
        ("S3_SECRET_ACCESS_KEY", " password "),
        ("S3_SECRET_ACCESS_KEY", " " * 12),
        ("DATABASE_URL", "postgresql+psycopg://postgres:postgres@localhost/d"),
        ("DATABASE_URL", "postgresql+psycopg://u:%70assword@h/d"),
        ("DATABASE_URL", "postgresql+psycopg://u@db.example/d"),
        ("DATABASE_URL", "postgresql+psycopg://u:@10.0.0.5/d"),
        ("REDIS_URL", "redis://cache:6379/0"),
        ("REDIS_URL", "redis://:redis@127.0.0.1:6379/0"),
        ("REDIS_URL", "redis://:changeme@cache"),
    ],
)
def test_nothing_starts_with_a_secret_that_is_none(environment, name, value):
    environment.setenv(name, value)
    with pytest.raises(ValidationError, match=r"openssl rand|needs a password") as caught:
        ApiSettings()
    assert len(caught.value.errors()) == 1
    assert not value.strip() or value not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("DATABASE_URL", "postgresql+psycopg://u@localhost/d"),
        ("DATABASE_URL", "postgresql+psycopg:///d?host=/run/postgres"),
        ("DATABASE_URL", "postgresql+psycopg://u@db.example/d?sslcert=client.crt&sslkey=client.key"),
        ("REDIS_URL", "redis://127.0.0.1:6379/0"),
        ("REDIS_URL", "redis://[::1]:6379"),
        ("REDIS_URL", "unix:///run/valkey.sock?db=1"),
        ("REDIS_URL", "redis+socket:///run/valkey.sock"),
    ],
)
def test_servers_of_this_machine_need_no_password(environment, name, value):
    environment.setenv(name, value)
    ApiSettings()


def test_networks_are_a_comma_separated_list(environment):
    assert WebhookSettings().allow_cidrs == ()
    environment.setenv("WEBHOOK_ALLOW_CIDRS", "10.0.0.0/8, fd00::/8")
    assert [str(network) for network in WebhookSettings().allow_cidrs] == ["10.0.0.0/8", "fd00::/8"]
    environment.setenv("WEBHOOK_ALLOW_CIDRS", "10.0.0.0/99")
    with pytest.raises(ValidationError):
        WebhookSettings()
