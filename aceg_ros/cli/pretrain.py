# SPDX-License-Identifier: Apache-2.0
"""`aceg pretrain`: the weights that ship with the package."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path
from time import monotonic
from typing import TYPE_CHECKING, Any

from aceg_ros.cli.arguments import add_computing_flags, add_verb, positive, share

if TYPE_CHECKING:
    from aceg_ros.pretraining.sacreg.scenes import CrossImageData

STAGES = "prepare what is missing of the data, train on what there is, or one after the other"


def add_parser(verbs: Any) -> None:
    verb = verbs.add_parser("pretrain", help="train the weights that ship with the package",
                            description="Train the weights that ship with the package. Interrupted runs are resumed.")
    networks = verb.add_subparsers(dest="what", required=True, metavar="WHAT")
    _add_encoder(networks)
    _add_ace_g(networks)
    _add_sacreg(networks)
    _add_marepo(networks)
    _add_reloc3r(networks)


def _add_encoder(networks: Any) -> None:
    verb = add_verb(networks, "encoder", run_encoder, "train the image encoder")
    _add_common(verb, rooms=320, iterations=6000, iterations_text="6000")
    verb.add_argument("--teacher", metavar="FILE", help="another encoder to distill")
    verb.add_argument("--teacher-every", type=positive, default=1, metavar="N", help="distill the teacher on every N-th"
                      " image only (default: %(default)s)")
    verb.add_argument("--images", nargs="*", default=(), metavar="DIR", help="folders of images without poses to train"
                      " on as well")
    verb.add_argument("--rate", type=float, metavar="X", help="peak learning rate (default: 2e-3; compact3: 1.5e-3)")
    verb.add_argument("--start", metavar="FILE", help="initial weights, from an earlier run")
    verb.add_argument("--without", nargs="*", default=(), choices=("coordinates", "reliability"), help="losses to leave"
                      " out, for ablations")
    second = verb.add_argument_group("--architecture compact3", "The encoder with keypoints of its own.")
    second.add_argument("--architecture", choices=("compact", "compact3"), default="compact", help="(default:"
                        " %(default)s)")
    _add_data_flags(second, stages=f"{STAGES}; a training also uses what another process prepares in the meantime")
    _add_held_out(second)
    second.add_argument("--only-keypoints", action="store_true", help="train the layers that place keypoints alone")
    second.add_argument("--pairs", type=positive, default=8, metavar="N", help="image pairs per step (default:"
                        " %(default)s)")
    _add_minutes(second)


def _add_ace_g(networks: Any) -> None:
    verb = add_verb(networks, "ace-g", run_ace_g, "train the regressor of method ace_g")
    _add_common(verb, rooms=100, iterations=None, iterations_text="6000; from noise 20000")
    _add_encoder_flag(verb, "encoder whose features the regressor takes")
    verb.add_argument("--query-share", type=share, default=1.0, metavar="X", help="share of steps with images of a"
                      " later session (the others use mapping images); with --codes-from noise, query steps per"
                      " mapping step (default: %(default)s)")
    verb.add_argument("--feature-dropout", type=share, metavar="X", help="share of feature entries set to zero in"
                      " training (default: 0; from noise 0.1, as in the paper)")
    verb.add_argument("--batch", type=positive, default=1024, metavar="N", help="patches per step (default:"
                      " %(default)s)")
    verb.add_argument("--codes-from", choices=("landmarks", "noise"), default="landmarks", help="code of a scene:"
                      " landmarks, or embeddings optimised from noise as published; the latter can be trained on"
                      " several GPUs with torchrun (default: %(default)s)")
    verb.add_argument("--width", type=positive, metavar="N", help="(default: 48; from noise 128; the paper: 512)")
    verb.add_argument("--blocks", type=positive, metavar="N", help="(default: 1; from noise 4; the paper: 6)")
    verb.add_argument("--heads", type=positive, metavar="N", help="(default: 4; the paper: 8)")
    verb.add_argument("--nearest", type=positive, default=4, metavar="N", help="landmarks that a patch attends to"
                      " (default: %(default)s)")
    noise = verb.add_argument_group("--codes-from noise", "The published training; defaults are for two CPU cores.")
    noise.add_argument("--mlp-ratio", type=positive, default=2, metavar="N", help="(the paper: 4; default:"
                       " %(default)s)")
    noise.add_argument("--codes", type=positive, default=256, metavar="N", help="codes per scene (the paper: 4096;"
                       " default: %(default)s)")
    noise.add_argument("--active", type=positive, default=8, metavar="N", help="scenes mapped at the same time"
                       " (default: %(default)s)")
    noise.add_argument("--lifetime", type=positive, default=300, metavar="N", help="mapping steps of a code before a"
                       " new scene replaces it (the paper: 1000; default: %(default)s)")


def _add_sacreg(networks: Any) -> None:
    verb = add_verb(networks, "sacreg", run_sacreg, "train the cross-image regressor of method sacreg")
    _add_common(verb, rooms=60, iterations=4500, iterations_text="4500")
    _add_encoder_flag(verb, "encoder whose features the regressor takes", "compact4")
    _add_data_flags(verb)
    _add_held_out(verb)
    verb.add_argument("--samples", type=positive, default=1, metavar="N", help="samples per step, of three"
                      " query images each (default: %(default)s)")
    verb.add_argument("--rate", type=float, default=7e-4, metavar="X", help="peak learning rate (default: %(default)s)")
    _add_start(verb, "sacreg")
    _add_minutes(verb)


def _add_marepo(networks: Any) -> None:
    verb = add_verb(networks, "marepo", run_marepo, "train the pose transformer of method marepo")
    _add_common(verb, rooms=60, iterations=40_000, iterations_text="40000")
    _add_encoder_flag(verb, "encoder whose keypoints are matched")
    _add_data_flags(verb, data="scenes, which are those of aceg pretrain sacreg and reloc3r")
    _add_held_out(verb)
    verb.add_argument("--size", choices=("small", "published"), default="small", help="small: ours, which weighs the"
                      " coordinates; published: 12 layers of 256 that regress the pose (default: %(default)s)")
    verb.add_argument("--without", nargs="*", default=(), choices=("reattention", "ray_encoding", "errors",
                      "confidence", "maps", "simulation"), help="parts of the network or of the data to leave out, for"
                      " ablations; errors and confidence are those of the small network alone")
    verb.add_argument("--batch", type=positive, default=16, metavar="N", help="images per step (default: %(default)s)")
    verb.add_argument("--tokens", type=positive, default=192, metavar="N", help="tokens of an image per step (default:"
                      " %(default)s)")
    verb.add_argument("--minutes", type=float, metavar="N", help="end the run after this time, all its parts together,"
                      " with a learning rate that falls accordingly")


def _add_reloc3r(networks: Any) -> None:
    verb = add_verb(networks, "reloc3r", run_reloc3r, "train a small relative pose network on keypoints, for method"
                    " reloc3r")
    _add_common(verb, rooms=60, iterations=3000, iterations_text="3000")
    _add_encoder_flag(verb, "encoder of the keypoints", "compact4")
    _add_data_flags(verb, data="scenes, also those of sacreg,")
    _add_held_out(verb)
    verb.add_argument("--width", type=positive, default=64, metavar="N", help="(default: %(default)s)")
    verb.add_argument("--blocks", type=positive, default=3, metavar="N", help="of each half (default: %(default)s)")
    verb.add_argument("--batch", type=positive, default=16, metavar="N", help="pairs per step (default: %(default)s)")
    verb.add_argument("--rate", type=float, default=1e-3, metavar="X", help="peak learning rate (default: %(default)s)")
    _add_start(verb, "reloc3r")
    _add_minutes(verb)


def run_reloc3r(options: argparse.Namespace) -> int:
    from aceg_ros.encoders.base import load_encoder
    from aceg_ros.networks.keypoint_relative_pose import KeypointPoseConfig
    from aceg_ros.pretraining.reloc3r.train import RelativePoseTraining, train
    from aceg_ros.pretraining.sacreg.scenes import prepare_scenes

    is_over = _time_limit(options)
    data, folder = _cross_image_data(options), _data_folder(options)
    if options.stage != "train":
        prepare_scenes(data, folder, is_over)
    if options.stage != "prepare":
        size = KeypointPoseConfig(dim_in=load_encoder(options.encoder).dim, width=options.width, blocks=options.blocks)
        training = RelativePoseTraining(run=Path(options.run_folder), folder=folder, data=data, size=size,
                                        iterations=options.iterations, batch=options.batch, seed=options.seed,
                                        peak_rate=options.rate, start=options.start, device=data.device)
        print(f"weights: {train(training, is_over)}")
    return 0


def _cross_image_data(options: argparse.Namespace) -> CrossImageData:
    from aceg_ros.pretraining.sacreg.scenes import CrossImageData
    from aceg_ros.utils.device import pick_device

    return CrossImageData(encoder=options.encoder, scenes=_paths(options.scenes), held_out=_paths(options.held_out),
                          textures=_textures(options), rooms=options.rooms, device=pick_device(options.device))


def _add_run(verb: argparse.ArgumentParser) -> None:
    verb.add_argument("--run", dest="run_folder", metavar="DIR", required=True, help="folder of the run; an"
                      " interrupted run in it is resumed")


def _add_start(verb: argparse.ArgumentParser, shipped: str) -> None:
    verb.add_argument("--start", metavar="FILE", help="weights to start from, also of another encoder: a file, or"
                      f" {shipped}")


def _add_encoder_flag(verb: argparse.ArgumentParser, role: str, default: str = "compact") -> None:
    verb.add_argument("--encoder", default=default, metavar="FILE", help=f"{role} (default: %(default)s)")


def _add_data_flags(verb: Any, *, data: str = "data", stages: str = STAGES) -> None:
    verb.add_argument("--data", metavar="DIR", help=f"folder of the prepared {data}, which several runs may share"
                      " (default: data in the folder of the run)")
    verb.add_argument("--stage", choices=("all", "prepare", "train"), default="all", help=f"{stages} (default:"
                      " %(default)s)")


def _add_held_out(verb: Any) -> None:
    verb.add_argument("--held-out", nargs="*", default=(), metavar="SCENE", help="recordings to evaluate on")


def _add_minutes(verb: Any) -> None:
    verb.add_argument("--minutes", type=float, metavar="N", help="stop after this time; the same command goes on")


def _time_limit(options: argparse.Namespace) -> Callable[[], bool]:
    """Return what tells whether the time that --minutes gives, from now on, is over."""
    started = monotonic()
    return lambda: options.minutes is not None and monotonic() - started > 60 * options.minutes


def _data_folder(options: argparse.Namespace) -> Path:
    return Path(options.run_folder) / "data" if options.data is None else Path(options.data)


def _textures(options: argparse.Namespace) -> Path | None:
    return None if options.textures is None else Path(options.textures)


def _paths(values: Sequence[str]) -> tuple[Path, ...]:
    return tuple(Path(value) for value in values)


def _add_common(verb: argparse.ArgumentParser, *, rooms: int, iterations: int | None, iterations_text: str) -> None:
    _add_run(verb)
    verb.add_argument("--scenes", nargs="*", default=(), metavar="SCENE", help="recordings to train on as well"
                      " (mapping parts only)")
    verb.add_argument("--textures", metavar="DIR", help="images of surfaces for the rendered rooms")
    verb.add_argument("--rooms", type=positive, default=rooms, metavar="N", help="rendered rooms (default:"
                      " %(default)s)")
    verb.add_argument("--iterations", type=positive, default=iterations, metavar="N",
                      help=f"(default: {iterations_text})")
    add_computing_flags(verb)


def run_encoder(options: argparse.Namespace) -> int:
    from aceg_ros.pretraining.encoder.data import EncoderData
    from aceg_ros.pretraining.encoder.train import EncoderTraining, train
    from aceg_ros.utils.device import pick_device

    if options.architecture == "compact3":
        return _run_keypoint_encoder(options)
    device = pick_device(options.device)
    data = EncoderData(scenes=_paths(options.scenes),
                       images=_paths(options.images),
                       textures=_textures(options), rooms=options.rooms,
                       teacher=options.teacher, teacher_every=options.teacher_every, seed=options.seed,
                       device=device)
    training = EncoderTraining(run=Path(options.run_folder), data=data, iterations=options.iterations,
                               seed=options.seed, device=device, peak_rate=options.rate or 2e-3,
                               start=None if options.start is None else Path(options.start),
                               without=tuple(options.without))
    print(f"weights: {train(training)}")
    return 0


def _run_keypoint_encoder(options: argparse.Namespace) -> int:
    from aceg_ros.pretraining.encoder.keypoint_data import KeypointData, prepare_data
    from aceg_ros.pretraining.encoder.keypoint_train import KeypointTraining, train
    from aceg_ros.utils.device import pick_device

    device, run, folder = pick_device(options.device), Path(options.run_folder), _data_folder(options)
    if options.stage != "train":
        prepare_data(KeypointData(
            scenes=_paths(options.scenes), images=_paths(options.images),
            textures=_textures(options), rooms=options.rooms,
            device=device), folder)
    if options.stage != "prepare":
        training = KeypointTraining(
            run=run, data=folder, held_out=_paths(options.held_out), iterations=options.iterations,
            minutes=options.minutes, only_keypoints=options.only_keypoints, pairs=options.pairs,
            peak_rate=options.rate or KeypointTraining.peak_rate, seed=options.seed, device=device,
            start=options.start, checkpoint_every=200 if device == "cpu" else 2000)
        print(f"weights: {train(training)}")
    return 0


def run_sacreg(options: argparse.Namespace) -> int:
    from aceg_ros.pretraining.sacreg.scenes import prepare_scenes
    from aceg_ros.pretraining.sacreg.train import CrossImageTraining, train

    is_over = _time_limit(options)
    data, run, folder = _cross_image_data(options), Path(options.run_folder), _data_folder(options)
    if options.stage != "train":
        prepare_scenes(data, folder, is_over)
    if options.stage != "prepare":
        weights = train(CrossImageTraining(run=run, folder=folder, data=data, iterations=options.iterations,
                                           samples=options.samples, peak_rate=options.rate, start=options.start,
                                           seed=options.seed,
                                           device=data.device), is_over)
        print(f"weights: {weights}")
    return 0


def run_ace_g(options: argparse.Namespace) -> int:
    from aceg_ros.encoders.base import load_encoder
    from aceg_ros.networks.landmark_regressor import LandmarkConfig
    from aceg_ros.networks.map_code_transformer import TransformerHeadConfig
    from aceg_ros.pretraining.ace_g import landmarks, map_codes
    from aceg_ros.pretraining.ace_g.code_steps import MapCodeTraining
    from aceg_ros.pretraining.ace_g.scenes import TrainingSceneData
    from aceg_ros.utils.device import pick_device

    device = pick_device(options.device)
    data = TrainingSceneData(encoder=options.encoder, scenes=_paths(options.scenes),
                             textures=_textures(options),
                             rooms=options.rooms, device=device)
    run, dim = Path(options.run_folder), load_encoder(options.encoder).dim
    from_noise = options.codes_from == "noise"
    dropout = (0.1 if from_noise else 0.0) if options.feature_dropout is None else options.feature_dropout
    common = {"iterations": options.iterations or (20_000 if from_noise else 6000), "batch": options.batch,
              "query_share": options.query_share, "feature_dropout": dropout, "seed": options.seed, "device": device}
    if from_noise:
        head = TransformerHeadConfig(
            dim_in=dim, num_blocks=options.blocks or 4, num_attention_heads=options.heads or 4,
            dim_emb=options.width or 128, mlp_ratio=options.mlp_ratio, unit_features=True)
        weights = map_codes.train(MapCodeTraining(run=run, data=data, size=head, codes=options.codes,
                                                  active=options.active, lifetime=options.lifetime, **common))
    else:
        size = LandmarkConfig(dim_in=dim, width=options.width or 48, heads=options.heads or 4,
                              blocks=options.blocks or 1, nearest=options.nearest)
        weights = landmarks.train(landmarks.LandmarkTraining(run=run, data=data, size=size, **common))
    print(f"weights: {weights}")
    return 0


def run_marepo(options: argparse.Namespace) -> int:
    from dataclasses import replace

    from aceg_ros.pretraining.encoder.chunks import scene_name
    from aceg_ros.pretraining.marepo import train
    from aceg_ros.pretraining.marepo.samples import SampleOptions
    from aceg_ros.pretraining.sacreg.scenes import prepare_scenes
    from aceg_ros.utils.device import pick_device

    is_over = _time_limit(options)
    device, run, folder = pick_device(options.device), Path(options.run_folder), _data_folder(options)

    size: Any = train.SMALL if options.size == "small" else train.PUBLISHED
    size = replace(size, **{name: False for name in ("reattention", "ray_encoding", "errors", "confidence")
                            if name in options.without})
    if options.stage != "train":
        prepare_scenes(_cross_image_data(options), folder, is_over)
    if options.stage != "prepare":
        real_share = 0.0 if "maps" in options.without else 1.0 if "simulation" in options.without else 0.5
        samples = SampleOptions(batch=options.batch, tokens=options.tokens, real_share=real_share)
        weights = train.train(train.PoseTraining(
            run=run, data=folder, held_out=tuple(scene_name(Path(path)) for path in options.held_out),
            iterations=options.iterations, minutes=options.minutes, size=size, samples=samples, seed=options.seed,
            device=device))
        print(f"weights: {weights}")
    return 0
