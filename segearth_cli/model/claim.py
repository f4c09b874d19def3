"""How large a CLIP model a description claims: building it takes memory before weights are read."""

from collections.abc import Mapping
from typing import Any


def fewest_parameters(model_cfg: Mapping[str, Any]) -> int:
    """A number of parameters that no model of this description has fewer than.

    Only the largest parts are counted: the attention's matrices, patches, positions and words.

    Raises:
        ArithmeticError, LookupError, TypeError, ValueError: it describes no model.
    """
    vision, text = model_cfg["vision_cfg"], model_cfg["text_cfg"]
    width, patch = int(vision["width"]), int(vision.get("patch_size", 16))
    words, length = int(text.get("vocab_size", 0)), int(text.get("context_length", 0))
    image = vision.get("image_size", 224)
    side = min(map(int, image)) if isinstance(image, list) else int(image)
    towers = [_attention(vision), _attention(text)]
    inputs = [3 * patch**2 * width, (side // patch) ** 2 * width]
    return sum(towers) + sum(inputs) + (words + length) * int(text["width"])


def _attention(tower: Mapping[str, Any]) -> int:
    layers = tower["layers"]
    blocks = sum(map(int, layers)) if isinstance(layers, list) else int(layers)
    return 4 * blocks * int(tower["width"]) ** 2
