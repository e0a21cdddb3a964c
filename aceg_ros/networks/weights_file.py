"""Regressors as files: ours (shipped, trained by `aceg pretrain ace-g`) and the published one (`aceg import ace-g`)."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from aceg_ros.errors import UserError
from aceg_ros.networks.landmark_regressor import LandmarkRegressor, LandmarkSize
from aceg_ros.networks.map_code_transformer import HeadSize, TransformerHead

SHIPPED = Path(__file__).parent.parent / "weights"
LANDMARKS, PUBLISHED = "ace-g-landmarks", "ace-g"
_KINDS = {LANDMARKS: (LandmarkRegressor, LandmarkSize), PUBLISHED: (TransformerHead, HeadSize)}


@dataclass(frozen=True)
class Regressor:
    """A frozen regressor. identity: kind and content hash; encoder: identity of the one it was trained on, "" where the
    file does not say; source: where it was found; codes: how many a map of it should have, 0 where it does not say."""

    net: LandmarkRegressor | TransformerHead
    identity: str
    encoder: str
    source: str
    codes: int = 0

    @property
    def dim_in(self) -> int:
        return self.net.size.dim_in


def save_regressor(net: LandmarkRegressor | TransformerHead, encoder: str, path: Path,
                   half: bool = True, codes: int = 0) -> None:
    """Write the weights, in fp16 if half, by way of a temporary file. codes: as in `Regressor`."""
    kind = LANDMARKS if isinstance(net, LandmarkRegressor) else PUBLISHED
    state = {key: (value.half() if half else value).detach().cpu().contiguous()
             for key, value in net.state_dict().items()}
    temporary = path.with_name(f".{path.name}.tmp")
    save_file(state, temporary, {"kind": kind, "size": json.dumps(asdict(net.size)), "encoder": encoder,
                                 "codes": str(codes)})
    temporary.replace(path)


def load_regressor(source: str, device: str = "cpu") -> Regressor:
    """By the name of a shipped one ("ace_g") or the path of a file. Raises UserError where there is none of ours."""
    shipped = SHIPPED / f"{source}.safetensors"
    path = shipped if shipped.exists() else Path(source).resolve()
    if not path.is_file():
        raise UserError(f"No regressor '{source}': give 'ace_g' or a file made by 'aceg import ace-g'.")
    try:
        with safe_open(str(path), framework="pt") as file:
            metadata = file.metadata() or {}
            state = {key: file.get_tensor(key) for key in file.keys()}
        net_class, size_class = _KINDS[metadata["kind"]]
        net = net_class(size_class(**json.loads(metadata["size"])))
        codes = int(metadata.get("codes", 0))
        net.load_state_dict({key: value.float() for key, value in state.items()})
    except (SafetensorError, OSError, KeyError, TypeError, ValueError, RuntimeError) as error:
        raise UserError(f"{path} is not a readable regressor file ({error!r}).") from None
    return Regressor(net.eval().requires_grad_(False).to(device), f"{metadata['kind']}:{digest(state)}",
                     metadata.get("encoder", ""), source if path == shipped else str(path), codes)


def digest(state: dict[str, Tensor]) -> str:
    """Content hash of weights: what tells one file from another in an identity."""
    return hashlib.sha256(b"".join(state[key].numpy().tobytes() for key in sorted(state))).hexdigest()[:16]
