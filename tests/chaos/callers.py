"""Those who use the service: they submit, cancel, stop and retry over HTTP, and ask again when nobody answers."""

from __future__ import annotations

import json
import secrets
import time
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Self

import httpx

from deploy.local.demo import shipped_samples
from tests.chaos.recipes import APART, TOGETHER

if TYPE_CHECKING:
    import random
    from collections.abc import Mapping, Sequence

PATIENCE_S = 60.0
PAUSE_S = 0.3
BUSY = frozenset({409, 429, 500, 502, 503, 504})
"""Statuses after which a caller may ask again; of 409 only that a twin of the request is still on its way."""
PICTURES = 2
"""So many a side: this is about work that gets lost, not about how good it is."""


@dataclass(frozen=True)
class Variant:
    """What a job asks for. Two jobs of one variant must come to the same LoRAs, bit for bit, whatever befalls them."""

    number: int
    recipe: str
    seed: int
    steps: dict[str, int] = field(hash=False)
    kind: str = "personalize"
    wishes: dict[str, Any] = field(default_factory=dict, hash=False)
    """Further parameters."""

    @property
    def results(self) -> frozenset[str]:
        """The files that it comes to, but for those that show a training while it runs."""
        sliders = {f"slider_{place}" for place in range(self.wishes.get("slider", 0))}
        if self.kind == "generate":
            return frozenset(
                {"preview", "report", *(f"picture_{place:03d}" for place in range(PICTURES * len(PROMPTS)))}
            )
        trained = frozenset() if self.kind == "merge" else TRAINED
        merged = frozenset() if self.kind == "train" else MERGED
        return trained | merged | {"preview", "report"} | sliders

    @property
    def twins(self) -> frozenset[str]:
        """Which of them are the same for all jobs of the variant, bit for bit."""
        if self.kind == "generate":
            return self.results - {"preview", "report"}
        return frozenset({"merged_diffusers"}) if self.kind == "merge" else frozenset(LORAS)


PROMPTS = ("a sbu cat", "a sbu cat in szn style")
LORAS = ("content_lora", "style_lora")
TRAINED = frozenset(LORAS) | {f"{name}_kohya" for name in LORAS}
MERGED = frozenset({"merged_diffusers", "merged_kohya", "merge_report", "merge_plot"})
PERSONALIZED = (
    Variant(0, APART, 1, {"content": 14, "style": 10, "merge": 6}),
    Variant(1, APART, 2, {"content": 10, "style": 16, "merge": 8}),
    Variant(2, APART, 3, {"content": 20, "style": 20, "merge": 6}),
    Variant(3, TOGETHER, 4, {"content": 12, "style": 14, "merge": 6}),
    Variant(4, APART, 5, {"content": 12, "style": 12, "merge": 10}),
)
OTHERS = (
    Variant(20, APART, 1, {"content": 12, "style": 10, "merge": 6}, wishes={"slider": 2, "preview_every": 5}),
    Variant(21, APART, 6, {"content": 14, "style": 12}, kind="train"),
    Variant(22, APART, 7, {"merge": 8}, kind="merge", wishes={"slider": 2}),
    Variant(23, APART, 8, {"sampling": 8}, kind="generate"),
)
"""Of the other kinds one each, and one that asks for all that is drawn."""
VARIANTS = (*PERSONALIZED, *OTHERS)

ALIKE = (
    *(Variant(5 + seed, APART, seed, {"content": 14, "style": 14, "merge": 6}) for seed in range(6)),
    PERSONALIZED[3],
)
"""Most may be trained in the same passes."""


@dataclass(frozen=True)
class Account:
    """A customer."""

    name: str
    key: str


@dataclass
class Order:
    """A job that the service has accepted, and the ends that it may come to."""

    job_id: str
    account: Account
    variant: Variant
    allowed: set[str] = field(default_factory=lambda: {"succeeded"})


class Callers:
    """Requests run in threads, so that the harness can revive the service which they wait for."""

    def __init__(
        self,
        api_url: str,
        accounts: list[Account],
        rng: random.Random,
        *,
        variants: Sequence[Variant] = VARIANTS,
        loras: Mapping[str, Mapping[str, str]],
        hook: Any,
    ) -> None:
        self.orders: dict[str, Order] = {}
        self.given_up: list[str] = []
        self._accounts = accounts
        self._variants = variants
        self._first = [variant for variant in OTHERS if variant in variants]
        """Ordered before chance decides, so that the shortest run has all kinds."""
        self._loras = loras
        self._rng = rng
        self._hook = hook
        self._http = httpx.Client(base_url=api_url, timeout=15)
        self._pool = ThreadPoolExecutor(8, thread_name_prefix="caller")
        self._pending: list[Future[Any]] = []
        samples = shipped_samples()
        self._files = [
            *(("content_images", (path.name, path.read_bytes())) for path in samples.content[:PICTURES]),
            *(("style_images", (path.name, path.read_bytes())) for path in samples.style[:PICTURES]),
        ]
        self._words = {
            "subject_class": samples.subject_class,
            "style_captions": list(samples.style_captions[:PICTURES]),
        }

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.shutdown(wait=True, cancel_futures=True)
        self._http.close()

    @property
    def busy(self) -> int:
        """Requests under way."""
        self._pending = [future for future in self._pending if not future.done()]
        return len(self._pending)

    def submit(self) -> Future[Order | None]:
        """Order a job, of a variant and for an account by chance."""
        account = self._rng.choice(self._accounts)
        variant = self._first.pop() if self._first else self._rng.choice(self._variants)
        return self._start(self._submit, account, variant)

    def ask(self, order: Order, what: str) -> Future[httpx.Response | None]:
        """POST /jobs/{id}/{cancel, stop, retry}."""
        return self._start(self._post, f"/jobs/{order.job_id}/{what}", order.account, {})

    def retry(self, order: Order) -> Future[Order | None]:
        """Order an ended job once more."""
        return self._start(self._retry, order)

    def _start(self, act: Any, *arguments: Any) -> Future[Any]:
        future = self._pool.submit(act, *arguments)
        self._pending.append(future)
        return future

    def _submit(self, account: Account, variant: Variant) -> Order | None:
        wishes = {"kind": variant.kind, "recipe": variant.recipe, "seed": variant.seed, "steps": variant.steps}
        wishes |= self._work(account, variant) | variant.wishes
        wishes["webhook_url"] = self._hook(account.name, "job")
        pictures = [] if variant.kind == "generate" else self._files
        files = [*pictures, ("params", (None, json.dumps(wishes), "application/json"))]
        return self._keep(self._post("/jobs", account, {"files": files}), account, variant)

    def _work(self, account: Account, variant: Variant) -> dict[str, Any]:
        """What a job of a kind works with, besides its pictures."""
        loras = self._loras[account.name]
        if variant.kind == "generate":
            used = [{"lora_id": lora_id, "strength": 0.8} for lora_id in loras.values()]
            return {"prompts": list(PROMPTS), "images_per_prompt": PICTURES, "loras": used}
        named = {f"{side}_lora_id": lora_id for side, lora_id in loras.items()} if variant.kind == "merge" else {}
        return self._words | named

    def _retry(self, order: Order) -> Order | None:
        return self._keep(self._post(f"/jobs/{order.job_id}/retry", order.account, {}), order.account, order.variant)

    def _keep(self, answer: httpx.Response | None, account: Account, variant: Variant) -> Order | None:
        if answer is None:
            return None
        if answer.status_code != httpx.codes.ACCEPTED:
            if answer.status_code == httpx.codes.UNPROCESSABLE_ENTITY:
                self.given_up.append(f"/jobs: {answer.text[:500]}")
            return None
        job_id = answer.json()["id"]
        return self.orders.setdefault(job_id, Order(job_id, account, variant))

    def _post(self, path: str, account: Account, options: dict[str, Any]) -> httpx.Response | None:
        """Post until there is an answer, always with the same key; None when there was none in all the time."""
        headers = {"Authorization": f"Bearer {account.key}", "Idempotency-Key": f'"{secrets.token_hex(12)}"'}
        give_up_at = time.monotonic() + PATIENCE_S
        said = "nothing"
        while time.monotonic() < give_up_at:
            try:
                answer = self._http.post(path, headers=headers, **options)
            except httpx.TransportError as error:
                said = type(error).__name__
            else:
                if answer.status_code not in BUSY or not _may_pass(answer):
                    return answer
                said = f"{answer.status_code} {answer.text[:200]}"
            time.sleep(PAUSE_S)
        self.given_up.append(f"{path}: {said}")
        return None


def _may_pass(answer: httpx.Response) -> bool:
    """Whether the same request may be answered otherwise in a moment."""
    return answer.status_code != httpx.codes.CONFLICT or answer.json().get("code") == "idempotency_in_flight"
