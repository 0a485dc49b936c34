"""What a person does with the console, in the words of its pages."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx
from playwright.sync_api import expect

if TYPE_CHECKING:
    from collections.abc import Iterable

    from playwright.sync_api import Locator, Page

    from deploy.local.demo import Samples
    from tests.console.conftest import Watched


def choose(page: Page, samples: Samples) -> None:
    """Choose two pictures for each side."""
    page.get_by_label("Choose subject pictures").set_input_files(samples.content[:2])
    page.get_by_label("Choose style pictures").set_input_files(samples.style[:2])


def drop(page: Page, side: str, paths: Iterable[Path]) -> None:
    """Drop files on one side, as from a folder's window."""
    files = [{"name": path.name, "bytes": list(path.read_bytes())} for path in paths]
    transfer = page.evaluate_handle(
        """files => {
            const transfer = new DataTransfer();
            for (const { name, bytes } of files)
                transfer.items.add(new File([new Uint8Array(bytes)], name, { type: "image/png" }));
            return transfer;
        }""",
        files,
    )
    page.locator(f"label:has(#field-{side}_images)").dispatch_event("drop", {"dataTransfer": transfer})


def state(page: Page, words: str) -> Locator:
    """The state of the job that a page shows."""
    return page.get_by_role("status").get_by_text(words, exact=True)


def cancel(page: Page) -> None:
    """Cancel the job that a page shows."""
    page.get_by_role("button", name="Cancel").click()
    page.get_by_role("button", name="Cancel the job").click()
    expect(state(page, "Canceled")).to_be_visible()


def download(page: Page, link: str) -> bytes:
    """Follow a link to a file, the first one of that name."""
    with page.expect_download() as waiting:
        page.get_by_role("link", name=link).first.click()
    return Path(waiting.value.path()).read_bytes()


def read_job(window: Watched, page: Page) -> Any:
    """The job that a page shows, as the API gives it."""
    answer = httpx.get(
        f"{window.home}/jobs/{page.url.rsplit('/', 1)[1]}", headers={"Authorization": f"Bearer {window.key}"}
    )
    return answer.json()
