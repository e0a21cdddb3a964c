"""Made-up scenes as the trainings of sacreg and reloc3r prepare them."""

import numpy as np

from aceg_ros.geometry import look_at
from aceg_ros.pretraining.sacreg.scenes import KEYFRAME, QUERY, CrossImageScene

IMAGES, SEEN = 10, 120


def made_up_scene(seed: int = 0, images: int = IMAGES, *, count: int = 400, seen: int = SEEN) -> CrossImageScene:
    """Landmarks with random descriptors on a wall, seen by cameras in a row; the last one is of a later session."""
    rng = np.random.default_rng(seed)
    points = np.column_stack([rng.uniform(-4, 4, count), rng.uniform(3.5, 4.5, count), rng.uniform(-2, 2, count)])
    vectors = rng.normal(size=(count, 128))
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    poses, pixels, tracks, descriptors = [], [], [], []
    for image in range(images):
        pose = look_at(np.array([0.2 * image - 1.0, 0.0, 0.0]), np.array([0.2 * image - 1.0, 4.0, 0.1]))
        local = (points - pose[:3, 3]) @ pose[:3, :3]
        projected = local[:, :2] / local[:, 2:] * 400.0 + (319.5, 239.5)
        shown = np.flatnonzero((projected > 0).all(1) & (projected < (639, 479)).all(1))[:seen]
        poses.append(pose)
        pixels.append(projected[shown])
        tracks.append(shown)
        descriptors.append(vectors[shown] + rng.normal(0, 0.02, (len(shown), 128)))
    roles = np.array([KEYFRAME] * (images - 1) + [QUERY], np.int8)
    track = np.concatenate(tracks)
    from_keyframe = np.repeat(roles == KEYFRAME, [len(each) for each in tracks])
    return CrossImageScene(
        descriptors=np.clip(np.concatenate(descriptors) * 127, -127, 127).astype(np.int8),
        pixels=np.concatenate(pixels).astype(np.float32), first=np.cumsum([0, *map(len, tracks)]),
        track=np.where(from_keyframe, track, -1).astype(np.int32), truth=points[track].astype(np.float32),
        points=points.astype(np.float32), roles=roles, source=np.arange(images), poses=np.stack(poses),
        intrinsics=np.tile([400.0, 400.0, 319.5, 239.5], (images, 1)), sizes=np.tile([640, 480], (images, 1)))
