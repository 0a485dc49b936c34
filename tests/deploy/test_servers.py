"""The three servers that come from wheels, as the tests and the local stack use them."""

import psycopg
import pytest
import redis


def libpq(url: str) -> str:
    return url.replace("+psycopg", "")


def test_a_database_of_its_own_for_every_test(empty_database_url):
    with psycopg.connect(libpq(empty_database_url)) as connection:
        assert connection.execute("select count(*) from pg_tables where schemaname = 'public'").fetchone() == (0,)


def test_postgres_refuses_a_wrong_password(postgres_server):
    url = libpq(postgres_server.url("postgres")).replace(":", ":wrong", 2).replace(":wrong//", "://")
    with pytest.raises(psycopg.OperationalError, match="password authentication failed"):
        psycopg.connect(url)


def test_valkey_refuses_a_caller_without_password(redis_url):
    with redis.Redis.from_url(redis_url) as client:
        assert client.ping()
        assert client.dbsize() == 0
    without_password = "redis://" + redis_url.rsplit("@", 1)[1]
    with redis.Redis.from_url(without_password) as stranger, pytest.raises(redis.AuthenticationError):
        stranger.ping()


def test_the_store_keeps_what_it_is_given(store):
    store.put_bytes("a/b.txt", b"content", "text/plain")
    assert store.get_bytes("a/b.txt") == b"content"
