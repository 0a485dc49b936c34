"""Requests are counted in the real Redis; its absence refuses nobody."""

import asyncio
import logging
import re

import pytest
import redis

from api.accounts.rates import RateLimiter
from api.accounts.service import issue_key
from api.settings import RateSettings
from deploy.local.processes import LOOPBACK, free_port
from tests.api.factories import Caller

DAY_S = 86_400
"""A window that hardly ends while a test runs."""
NOBODY = f"redis://{LOOPBACK}:1"


@pytest.fixture
def early(monkeypatch):
    """The clock stands at the beginning of a window of a minute; returns how to move it."""
    now = [1_800_000_000.0]
    monkeypatch.setattr("api.accounts.rates.time.time", lambda: now[0])

    def move(seconds):
        now[0] += seconds

    return move


def limited(url, requests, window_s=60):
    return RateLimiter(RateSettings(requests=requests, window_s=window_s), url)


def take(limiters, count=1, key="k"):
    """Take permits by turns, in one loop, and return what was said each time."""

    async def run():
        said = [await limiters[number % len(limiters)].take(key) for number in range(count)]
        for limiter in limiters:
            await limiter.close()
        return said

    return asyncio.run(run())


@pytest.fixture
def mine(serve, sessions):
    """Make a client of a process with a limit."""

    def make(requests, **changes):
        return Caller(
            serve(rates=RateSettings(requests=requests, window_s=DAY_S), **changes), issue_key(sessions, account="mine")
        )

    return make


class TestCount:
    def test_so_many_and_no_more_until_the_window_ends(self, redis_url, early):
        limiter = limited(redis_url, 3)
        said = take([limiter], 4)
        assert [granted for _, granted in said] == [True, True, True, False]
        assert [standing.remaining for standing, _ in said] == [2, 1, 0, 0]
        assert {standing.reset_s for standing, _ in said} == {60}
        early(59.5)
        [(standing, granted)] = take([limiter])
        assert (standing.reset_s, granted) == (1, False)
        early(0.5)
        [(standing, granted)] = take([limiter])
        assert (standing.remaining, granted) == (2, True)

    @pytest.mark.usefixtures("early")
    def test_two_processes_count_together(self, redis_url):
        said = take([limited(redis_url, 5), limited(redis_url, 5)], 8)
        assert [granted for _, granted in said] == [True] * 5 + [False] * 3

    @pytest.mark.usefixtures("early")
    def test_keys_are_counted_apart(self, redis_url):
        assert take([limited(redis_url, 1)], key="a")[0][1]
        assert take([limited(redis_url, 1)], key="b")[0][1]
        assert not take([limited(redis_url, 1)], key="a")[0][1]

    @pytest.mark.usefixtures("early")
    def test_permits_are_taken_in_shares_and_never_too_many(self, redis_url):
        with redis.Redis.from_url(redis_url) as client:
            client.config_resetstat()
        said = take([limited(redis_url, 1000), limited(redis_url, 1000)], 1100)
        assert sum(granted for _, granted in said) == 1000
        with redis.Redis.from_url(redis_url) as client:
            [name] = client.keys("duolora:rate:*")
            assert 0 < client.ttl(name) <= 120
            counted = client.info("commandstats")["cmdstat_incrby"]["calls"]
        assert counted <= 102

    @pytest.mark.usefixtures("early")
    def test_many_at_once_get_no_more_either(self, redis_url):
        async def run():
            limiter = limited(redis_url, 200)
            said = await asyncio.gather(*(limiter.take("k") for _ in range(300)))
            await limiter.close()
            return said

        granted = sum(granted for _, granted in asyncio.run(run()))
        assert granted == 200

    def test_a_limit_of_none_asks_nobody(self):
        assert take([limited(NOBODY, 0)]) == [(None, True)]


class TestWithoutRedis:
    def test_everybody_goes_on_and_one_line_says_so(self, caplog):
        with caplog.at_level(logging.INFO, logger="api.accounts.rates"):
            assert take([limited(NOBODY, 1)], 5) == [(None, True)] * 5
        assert [record.levelname for record in caplog.records] == ["WARNING"]

    def test_one_that_hangs_is_not_waited_for_long(self):
        """It takes connections and says nothing."""

        async def run():
            writers = []
            server = await asyncio.start_server(lambda _, writer: writers.append(writer), LOOPBACK, port := free_port())
            limiter = limited(f"redis://{LOOPBACK}:{port}", 1)
            async with asyncio.timeout(10):
                said = [await limiter.take("k") for _ in range(20)]
            await limiter.close()
            for writer in writers:
                writer.close()
                await writer.wait_closed()
            server.close()
            await server.wait_closed()
            return said

        assert asyncio.run(run()) == [(None, True)] * 20

    @pytest.mark.usefixtures("early")
    def test_when_it_is_back_it_is_asked_again(self, redis_url, monkeypatch, caplog):
        monkeypatch.setattr("api.accounts.rates.AWAY_S", 0.0)
        limiter = limited(redis_url, 1)
        there, away = limiter._redis, limited(NOBODY, 1)._redis

        async def run():
            limiter._redis = away
            said = [await limiter.take("k"), await limiter.take("k")]
            limiter._redis = there
            said += [await limiter.take("k"), await limiter.take("k")]
            await away.aclose()
            await there.aclose()
            return said

        with caplog.at_level(logging.INFO, logger="api.accounts.rates"):
            said = asyncio.run(run())
        assert [granted for _, granted in said] == [True, True, True, False]
        assert [record.levelname for record in caplog.records] == ["WARNING", "INFO"]

    def test_the_service_serves(self, mine, api_settings):
        dead = api_settings.redis.model_copy(update={"url": type(api_settings.redis.url)(NOBODY)})
        answers = [mine(1, redis=dead).get("/jobs") for _ in range(2)]
        assert [answer.status_code for answer in answers] == [200, 200]
        assert "ratelimit" not in answers[0].headers


class TestAnswers:
    def test_every_answer_says_what_is_left(self, mine):
        caller = mine(100)
        answers = [caller.get("/jobs"), caller.get("/jobs/x"), caller.get("/jobs?limit=0"), caller.get("/recipes")]
        assert [answer.status_code for answer in answers] == [200, 404, 422, 200]
        left = []
        for answer in answers:
            assert answer.headers["ratelimit-policy"] == '"requests";q=100;w=86400'
            left.append(int(re.fullmatch(r'"requests";r=(\d+);t=\d+', answer.headers["ratelimit"])[1]))
        assert left == [99, 98, 97, 96]

    def test_a_request_too_many_is_told_when_to_come_again(self, mine):
        caller = mine(1)
        assert caller.get("/jobs").status_code == 200
        refused = caller.get("/jobs")
        problem = refused.json()
        assert (refused.status_code, problem["code"], problem["retryable"]) == (429, "rate_limited", True)
        assert problem["violated_policies"] == ["requests"]
        after = int(refused.headers["retry-after"])
        assert 1 <= after <= DAY_S
        assert refused.headers["ratelimit"] == f'"requests";r=0;t={after}'

    def test_a_body_too_many_is_not_read(self, mine):
        caller = mine(1)
        caller.get("/jobs")
        assert caller.submit().json()["code"] == "rate_limited"

    def test_quotas_stand_beside_it(self, mine, sessions):
        caller = mine(100)
        issue_key(sessions, account="mine", quotas={"max_queued_jobs": 1})
        first, second = caller.submit(), caller.submit()
        for answer in (first, second):
            policies = answer.headers["ratelimit-policy"].split(", ")
            assert policies == ['"requests";q=100;w=86400', '"queued-jobs";q=1;qu="concurrent-requests"']
            assert answer.headers["ratelimit"].endswith(', "queued-jobs";r=0')
        assert (second.status_code, second.json()["code"]) == (429, "quota_exceeded")

    def test_whoever_has_no_key_hears_of_no_limit(self, http):
        assert "ratelimit" not in http.get("/jobs").headers
        assert "ratelimit" not in http.get("/livez").headers


def test_the_default_is_generous():
    assert RateSettings().requests / RateSettings().window_s >= 100
