"""Face swaps: a task for the workflow `face_swap`, asked for by the two pictures alone.

Owns: the shape of this call and the parameters such a task carries. Must not: call the service.
"""

from typing import Annotated, Literal

from pydantic import Field

from comfyd.api.operation import Call, op, under_api
from comfyd.api.tasks import CreateTask, TaskOptions, create
from comfyd.api.taskview import TaskAnswer

WORKFLOW = "face_swap"
Url = Annotated[str, Field(max_length=2048, pattern=r"^https?://[^\s/?#]\S*$")]


class CreateFaceSwap(TaskOptions):
    """The face of source_url goes into target_url. resolution: WIDTHxHEIGHT in pixels."""

    source_url: Url
    target_url: Url
    resolution: str = Field(default="1024x1024", pattern=r"^[1-9][0-9]{0,4}x[1-9][0-9]{0,4}$")
    media_type: Literal["image", "video"] = "image"
    model: str = Field(default="inswapper_128_fp16", pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,127}$")


class FaceSwapAnswer(TaskAnswer):
    status: str


@op(
    "POST", "/api/faceswap/create", scope="client", body=CreateFaceSwap, response=FaceSwapAnswer, errors=(404,),
    also=under_api("/api/faceswap/create"),
)  # fmt: skip
async def create_face_swap(call: Call[CreateFaceSwap, None]) -> FaceSwapAnswer:
    """Queue a face swap. The task's params are what the service's POST /process takes, and media_type."""
    asked = call.body.model_dump()
    options = {name: asked.pop(name) for name in TaskOptions.model_fields}
    made = await create(call, WORKFLOW, CreateTask(params=asked, **options))
    return FaceSwapAnswer(status=made.task.status, **dict(made))
