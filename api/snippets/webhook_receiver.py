"""Takes the service's webhooks and fetches what jobs have made.

WEBHOOK_SECRET=whsec_... DUOLORA_URL=... DUOLORA_API_KEY=duo_... uvicorn webhook_receiver:app --port 9000
"""

import os

from fastapi import BackgroundTasks, FastAPI, HTTPException, Request

from api.client import Client, InvalidSignature, verify_webhook

app = FastAPI()


@app.post("/hook", status_code=204)
async def hook(request: Request, later: BackgroundTasks) -> None:
    """Answer at once: what takes long is done afterwards."""
    try:
        # The body as it came: read as JSON and written again it would have another signature.
        event = verify_webhook(await request.body(), request.headers, os.environ["WEBHOOK_SECRET"])
    except InvalidSignature as error:
        raise HTTPException(400, str(error)) from error
    # The same event may come twice, always with the same `webhook-id`: fetching twice does no harm.
    if event["type"] == "job.succeeded":
        later.add_task(fetch, event["data"]["job_id"])


def fetch(job_id: str) -> None:
    """Write the job's files into a folder of its id."""
    with Client(os.environ["DUOLORA_URL"], os.environ["DUOLORA_API_KEY"]) as client:
        client.job(job_id).download(job_id)
