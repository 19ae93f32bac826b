"""How OpenAPI describes the bodies that FastAPI can't: a form, JSON, or an image with the fields as parameters."""

from __future__ import annotations

from typing import Any

from serving.bodies.json_body import JsonImage
from serving.schemas import Fields


def body_of(kind: type[Fields], *, images_required: bool = True) -> dict[str, Any]:
    """`openapi_extra` of a route that `read_request` reads."""
    fields = kind.model_json_schema()["properties"]
    files = {"type": "array", "items": {"type": "string", "format": "binary"}, "description": "The images"}
    encoded = {"type": "array", "items": JsonImage.model_json_schema(), "description": "The images"}

    def of(name: str, images: dict[str, Any]) -> dict[str, Any]:
        required = {"required": [name]} if images_required else {}
        return {"schema": {"type": "object", **required, "properties": {name: images, **fields}}}

    content = {
        "multipart/form-data": of("image", files),
        "application/json": of("images", encoded),
        "image/*": {"schema": {"type": "string", "format": "binary"}},
    }
    return {
        "requestBody": {"required": True, "content": content},
        "parameters": [
            {
                "name": name,
                "in": "query",
                "required": False,
                "schema": {key: value for key, value in field.items() if key != "description"},
                "description": f"{field['description']} (With an `image/*` body; else it is a field of the body.)",
            }
            for name, field in fields.items()
        ],
    }
