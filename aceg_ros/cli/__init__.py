"""The `aceg` command: one function per verb, each a few calls into the core."""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tqdm import tqdm

from aceg_ros import __version__
from aceg_ros.errors import UserError
from aceg_ros.utils.progress import JsonProgress, MappingBar

if TYPE_CHECKING:
    from aceg_ros.camera import Camera
    from aceg_ros.datasets import BagOptions
    from aceg_ros.methods.options import Option

BUDGET_S = {"cpu": 300.0, "cuda": 120.0}

SCENE_HELP = ("a folder of posed pictures: ACE (rgb/ poses/ calibration/), 7-Scenes, TUM RGB-D, COLMAP model or"
              " transforms.json; or a ROS bag (mcap, sqlite3, ROS 1); recognised by what is in it")


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point. Returns the exit code: 0, 2 on bad usage or bad files (one sentence on stderr), 130 on Ctrl-C."""
    parser = _parser()
    options = parser.parse_args(arguments)
    _settle_process()
    try:
        return options.run(options) or 0
    except UserError as error:
        print(f"aceg: {error}", file=sys.stderr)
        return 2
    except BrokenPipeError:
        return 0
    except KeyboardInterrupt:
        print("aceg: interrupted.", file=sys.stderr)
        return 130


def _settle_process() -> None:
    import cv2

    from aceg_ros.utils.malloc import configure_malloc
    configure_malloc()
    cv2.setNumThreads(1)                    # torch has the cores


# --- verbs ----------------------------------------------------------------------------------------------------------


def run_map(options: argparse.Namespace) -> int:
    started = time.monotonic()
    from aceg_ros.datasets import open_scene
    from aceg_ros.mapping.budget import MappingBudget
    from aceg_ros.maps.scene_map import check_writable
    from aceg_ros.methods import registry
    from aceg_ros.methods.base import MappingOptions
    from aceg_ros.methods.build_map import build_map
    from aceg_ros.utils.device import pick_device

    given = {name: getattr(options, name) for name in registry.all_options() if hasattr(options, name)}
    if options.method is not None:
        method_options = registry.own_options(options.method, given)
    device = pick_device(options.device)
    total_s = BUDGET_S[device] if options.budget is None else options.budget
    scene = open_scene(options.scene, options.every, _bag_options(options))
    check_writable(options.output)
    frames = tqdm(scene, "reading frames", total=len(scene), unit="frame", leave=False, disable=None)
    mapping = MappingOptions(encoder=options.encoder, seed=options.seed, device=device, use_depth=options.use_depth)
    method = options.method or registry.default_method(mapping, given)
    method_options = registry.own_options(method, given)
    with _StopOnInterrupt() as stop, (JsonProgress() if options.json_progress else MappingBar()) as bar:
        budget = MappingBudget.start(total_s, progress=bar.show, should_stop=stop.asked, started=started)
        scene_map, refused = build_map(method, mapping, frames, budget, method_options=method_options)
    _tell_skipped([skipped.reason for skipped in scene.skipped] + refused, len(scene))
    scene_map = replace(scene_map, statistics=replace(
        scene_map.statistics, skipped=scene_map.statistics.skipped + len(scene.skipped)))
    size = scene_map.save(options.output)
    statistics = scene_map.statistics
    if statistics.encoded < statistics.frames and statistics.mapping_s > 0.75 * total_s:
        print(f"aceg: there was time for {statistics.encoded} of {statistics.frames} pictures only: give more with"
              " --budget, or take fewer with --every.", file=sys.stderr)
    note = "" if statistics.complete else " (stopped early: what was learned so far)"
    made = f"{statistics.patches} landmarks" if statistics.iterations == 0 else \
        f"{statistics.iterations} iterations, training reprojection error {statistics.reprojection_px:.1f} px"
    print(f"{options.output}: {statistics.frames} frames, {made}, {time.monotonic() - started:.0f} s, {size / 1e6:.1f}"
          f" MB{note}")
    return 0


def run_localize(options: argparse.Namespace) -> int:
    from aceg_ros.camera import Frame
    from aceg_ros.datasets import load_camera_file, load_image
    from aceg_ros.estimate import PoseEstimate, Status
    from aceg_ros.evaluation.evaluate import tum_line
    from aceg_ros.maps.scene_map import SceneMap
    from aceg_ros.methods.registry import make_localizer
    from aceg_ros.utils.atomic_file import write_json, write_text

    scene_map = SceneMap.load(options.map)
    localizer = make_localizer(scene_map, options.device, options.seed)
    answers, lines, unreadable = [], [], 0
    for number, path in enumerate(options.images):
        try:
            image = load_image(path)
        except UserError as error:
            estimate = PoseEstimate(status=Status.BAD_IMAGE, message=str(error))
            unreadable += 1
        else:
            height, width = image.shape[:2]
            camera = _mapping_camera(scene_map.cameras, width, height) if options.camera is None else \
                load_camera_file(options.camera, width, height)
            estimate = localizer.localize(Frame(image=image, camera=camera, stamp_s=float(number), name=str(path)))
        pose = None if estimate.map_from_camera is None else estimate.map_from_camera.tolist()
        answers.append({"image": str(path), "status": estimate.status.value, "message": estimate.message,
                        "map_from_camera": pose,
                        "covariance": None if estimate.covariance is None else estimate.covariance.tolist(),
                        "inliers": estimate.inliers, "inlier_ratio": estimate.inlier_ratio})
        if estimate.map_from_camera is not None:
            lines.append(tum_line(float(number), estimate.map_from_camera))
            print(f"{path}: {lines[-1].split(' ', 1)[1]}  ({estimate.inliers} inliers)")
        else:
            print(f"{path}: {estimate.status.value}: {estimate.message}")
    if options.output:
        write_text(Path(options.output), "".join(line + "\n" for line in lines))
    if options.json:
        write_json({"images": answers}, Path(options.json))
    if unreadable:
        raise UserError(f"{unreadable} of {len(options.images)} pictures could not be read, see above.")
    return 0


def run_evaluate(options: argparse.Namespace) -> int:
    from aceg_ros.datasets import open_scene
    from aceg_ros.evaluation.evaluate import evaluate_map
    from aceg_ros.maps.scene_map import SceneMap
    from aceg_ros.utils.atomic_file import write_json
    from aceg_ros.utils.device import pick_device

    device, path = pick_device(options.device), Path(options.map)
    scene_map = SceneMap.load(path)
    scene = open_scene(options.scene, options.every, _bag_options(options))
    _check_outputs(options)
    with tqdm(total=len(scene), desc="localizing", unit="frame", leave=False, disable=None) as bar:
        run = evaluate_map(path.name, path, scene_map, scene, device, options.seed, lambda done, total: bar.update())
    _tell_skipped([skipped.reason for skipped in scene.skipped], len(scene))
    if options.json:
        write_json(run.content, Path(options.json))
    if options.report:
        from aceg_ros.evaluation.html_page import write_page
        from aceg_ros.evaluation.report import write_report
        write_report(Path(options.report), run.results, scene_map)
        write_json(run.content, Path(options.report) / "summary.json")
        write_page(Path(options.report) / "report.html", [run], scene.name, scene)
    print(json.dumps(run.content, indent=2))
    return 0


def run_compare(options: argparse.Namespace) -> int:
    from aceg_ros.datasets import open_scene
    from aceg_ros.evaluation.compare import compare, table
    from aceg_ros.utils.atomic_file import write_json
    from aceg_ros.utils.device import pick_device

    paths = [Path(path) for path in options.maps]
    if len({path.stem for path in paths}) < len(paths):
        raise UserError("Two of the maps have the same name: their columns could not be told apart.")
    device = pick_device(options.device)
    scene = open_scene(options.scene, options.every, _bag_options(options))
    _check_outputs(options)
    with tqdm(total=len(paths) * len(scene), desc="localizing", unit="frame", leave=False, disable=None) as bar:
        runs = compare(paths, scene, device, options.seed, lambda done, total: bar.update())
    _tell_skipped([skipped.reason for skipped in scene.skipped], len(scene))
    if options.json:
        write_json({run.name: run.content for run in runs}, Path(options.json))
    if options.report:
        from aceg_ros.evaluation.html_page import write_page
        write_page(Path(options.report) / "report.html", runs, scene.name, scene)
    print(table(runs))
    return 0


def run_play(options: argparse.Namespace) -> int:
    parameters: dict[str, object] = {"scene": str(Path(options.scene).resolve()), "every": options.every}
    if options.rate is None:
        parameters |= {"clock": True, "speed": options.speed}
    else:
        parameters["rate"] = options.rate
    parameters |= {"loop": options.loop, "wait_for_subscribers": options.wait_for}
    chosen = {"bag_image": options.image, "bag_camera_info": options.camera_info,
              "bag_pose_topic": options.pose_topic, "bag_pose_of": options.pose_of,
              "bag_tf_map": options.tf and options.tf[0], "bag_tf_camera": options.tf and options.tf[1],
              "bag_start": options.start or None, "bag_end": options.end if options.end < 1e9 else None,
              "bag_rectified": options.rectified or None}
    parameters |= {name: value for name, value in chosen.items() if value}
    return _become_node("scene_player", parameters)


def run_record(options: argparse.Namespace) -> int:
    return _become_node("bag_recorder", {"output": str(Path(options.output).resolve()),
                                         "topics": " ".join(options.topics)})


def run_view(options: argparse.Namespace) -> int:
    from aceg_ros.datasets import open_scene
    from aceg_ros.maps.scene_map import SceneMap, check_writable
    from aceg_ros.methods.registry import make_localizer
    from aceg_ros.visualization.rerun_viewer import show

    scene_map = SceneMap.load(options.map)
    frames = () if options.scene is None else open_scene(options.scene, options.every, _bag_options(options))
    localizer = None if options.scene is None else make_localizer(scene_map, options.device, options.seed)
    if options.save:
        check_writable(options.save)
    count = show(scene_map, localizer, tqdm(frames, "localizing", unit="frame", leave=False, disable=None),
                 None if options.save is None else Path(options.save))
    print(f"{options.map}: {len(scene_map.cloud_xyz)} points, {count} frames shown"
          + (f"; saved as {options.save}, open it with 'rerun {options.save}'." if options.save else "."))
    return 0


def run_info(options: argparse.Namespace) -> int:
    from aceg_ros.maps.describe import describe

    rows = describe(options.map)
    for name, value in rows.items():
        print(f"{name:>16}: {value}")
    if options.verify:
        from aceg_ros.maps.scene_map import SceneMap  # describing a map needs no torch
        SceneMap.load(options.map).verify()
        print(f"{'verified':>16}: all sections match their checksums")
    return 0


def run_import(options: argparse.Namespace) -> int:
    from aceg_ros.importers.importing import import_file

    print(import_file(options.kind, Path(options.file), Path(options.output), options.encoder, options.regressor))
    return 0


def run_demo(options: argparse.Namespace) -> int:
    from aceg_ros.demo.run import run_demo as run

    run(Path(options.output), None if options.scene is None else Path(options.scene), options.budget)
    return 0


def run_bench(options: argparse.Namespace) -> int:
    from aceg_ros.benchmarks.speed import run_bench as run

    content = run(options.map, options.device, options.repeats)
    if options.json:
        from aceg_ros.utils.atomic_file import write_json
        write_json(content, Path(options.json))
    return 0


def run_pretrain_encoder(options: argparse.Namespace) -> int:
    from aceg_ros.pretraining.encoder.data import EncoderData
    from aceg_ros.pretraining.encoder.train import EncoderTraining, train
    from aceg_ros.utils.device import pick_device

    device = pick_device(options.device)
    data = EncoderData(tuple(Path(scene) for scene in options.scenes),
                       None if options.textures is None else Path(options.textures), options.rooms,
                       teacher=options.teacher, teacher_every=options.teacher_every, seed=options.seed,
                       device=device)
    training = EncoderTraining(Path(options.run_folder), data, options.iterations, seed=options.seed, device=device,
                               start=None if options.start is None else Path(options.start),
                               without=tuple(options.without))
    print(f"weights: {train(training)}")
    return 0


def run_pretrain_ace_g(options: argparse.Namespace) -> int:
    from aceg_ros.encoders.base import load_encoder
    from aceg_ros.networks.landmark_regressor import LandmarkSize
    from aceg_ros.networks.map_code_transformer import HeadSize
    from aceg_ros.pretraining.ace_g.map_codes import CodePretraining
    from aceg_ros.pretraining.ace_g.map_codes import train as pretrain_on_codes
    from aceg_ros.pretraining.ace_g.scenes import PlaceData
    from aceg_ros.pretraining.ace_g.train import RegressorTraining, train
    from aceg_ros.utils.device import pick_device

    device = pick_device(options.device)
    data = PlaceData(options.encoder, tuple(Path(scene) for scene in options.scenes),
                     None if options.textures is None else Path(options.textures), options.rooms, device=device)
    run, dim = Path(options.run_folder), load_encoder(options.encoder).dim
    from_noise = options.codes_from == "noise"
    dropout = (0.1 if from_noise else 0.0) if options.feature_dropout is None else options.feature_dropout
    common = {"iterations": options.iterations or (20_000 if from_noise else 6000), "batch": options.batch,
              "query_share": options.query_share, "feature_dropout": dropout, "seed": options.seed, "device": device}
    if from_noise:
        head = HeadSize(dim, options.blocks or 4, options.heads or 4, options.width or 128, options.mlp_ratio,
                        unit_features=True)
        weights = pretrain_on_codes(CodePretraining(run, data, size=head, codes=options.codes, active=options.active,
                                                    lifetime=options.lifetime, **common))
    else:
        size = LandmarkSize(dim, options.width or 48, options.heads or 4, options.blocks or 1, options.nearest)
        weights = train(RegressorTraining(run, data, size=size, **common))
    print(f"weights: {weights}")
    return 0


# --- pieces ---------------------------------------------------------------------------------------------------------


class _StopOnInterrupt:
    """The first Ctrl-C asks for an orderly end; a second one interrupts at once."""

    def __enter__(self) -> _StopOnInterrupt:
        self._asked = False
        try:
            self._previous = signal.signal(signal.SIGINT, self._handle)
        except ValueError:                       # not in the main thread: nothing to catch there
            self._previous = None
        return self

    def __exit__(self, *_: object) -> None:
        if self._previous is not None:
            signal.signal(signal.SIGINT, self._previous)

    def _handle(self, *_: object) -> None:
        if self._asked:
            raise KeyboardInterrupt
        self._asked = True
        tqdm.write("stopping: the map so far will be saved (Ctrl-C again to drop it)", file=sys.stderr)

    def asked(self) -> bool:
        return self._asked


def _become_node(name: str, parameters: dict[str, object]) -> int:
    """Go on as a ROS node; does not return."""
    from aceg_ros.demo.processes import node_command, ros_environment

    os.execve(sys.executable, [sys.executable, *node_command(f"aceg_ros.ros.{name}", parameters)],
              os.environ | ros_environment())


def _bag_options(options: argparse.Namespace) -> BagOptions | None:
    """None where nothing was asked for."""
    from aceg_ros.datasets import BagOptions

    chosen = BagOptions(image=options.image or "", camera_info=options.camera_info or "",
                        pose_topic=options.pose_topic or "", pose_of=options.pose_of or "",
                        tf=None if options.tf is None else tuple(options.tf), start_s=options.start, end_s=options.end,
                        rectified=options.rectified)
    return None if chosen == BagOptions() else chosen


def _check_outputs(options: argparse.Namespace) -> None:
    """That --json and --report can be written, before the work. Raises UserError."""
    from aceg_ros.maps.scene_map import check_writable

    for target in filter(None, (options.json, options.report and f"{options.report}/summary.json")):
        check_writable(target)


def _tell_skipped(reasons: Sequence[str], listed: int) -> None:
    if reasons:
        print(f"aceg: {len(reasons)} of {listed} frames skipped:", file=sys.stderr)
        for reason in reasons[:5]:
            print(f"  {reason}", file=sys.stderr)
        if len(reasons) > 5:
            print(f"  and {len(reasons) - 5} more", file=sys.stderr)


def _mapping_camera(cameras: Sequence[Camera], width: int, height: int) -> Camera:
    """The mapping run's own camera, where it had one of the picture's size, and only one."""
    fitting = [camera for camera in cameras if (camera.width, camera.height) == (width, height)]
    if len(fitting) == 1:
        return fitting[0]
    sizes = ", ".join(sorted({f"{camera.width}x{camera.height}" for camera in cameras})) or "none"
    found = f"{len(fitting)} cameras" if fitting else "no camera"
    raise UserError(f"The map knows {found} of {width}x{height} (its pictures: {sizes}): give the intrinsics with"
                    " --camera FILE.")


# --- usage ----------------------------------------------------------------------------------------------------------


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="aceg", description="Map a place from posed pictures in minutes; then find any new picture in it.",
        epilog="Example: aceg map recording/ -o lab.map && aceg evaluate lab.map another_recording/")
    parser.add_argument("--version", action="version", version=f"aceg_ros {__version__}")
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="VERB")

    verb = _verb(verbs, "map", run_map, "make a map from posed pictures")
    verb.add_argument("scene", metavar="SCENE", help=SCENE_HELP)
    verb.add_argument("-o", "--output", metavar="MAP", required=True, help="map file to write")
    verb.add_argument("--method", metavar="METHOD", help=_methods_help())
    verb.add_argument("--encoder", default="compact", help="shipped encoder or a file from 'aceg import'"
                      " (default: %(default)s)")
    verb.add_argument("--budget", type=_seconds, metavar="S", help="seconds until the map is written, at most (default:"
                      " 300 on a CPU, 120 on a GPU)")
    conflicting = {"use_depth": verb.add_mutually_exclusive_group()}
    conflicting["use_depth"].add_argument("--use-depth", action="store_true", help="learn from the scene's depth"
                                          " images")
    _method_flags(verb, conflicting)
    verb.add_argument("--json-progress", action="store_true", help="one JSON object a line on stdout, for programs")
    _common(verb, every=True)

    verb = _verb(verbs, "localize", run_localize, "find pictures in a map")
    verb.add_argument("map", metavar="MAP")
    verb.add_argument("images", metavar="IMAGE", nargs="+")
    verb.add_argument("--camera", metavar="FILE", help="intrinsics: ROS camera_info YAML, JSON or a 3x3 text file"
                      " (default: the mapping camera of the picture's size)")
    verb.add_argument("-o", "--output", metavar="POSES.tum", help="write the poses in TUM format, picture number as"
                      " stamp")
    verb.add_argument("--json", metavar="FILE", help="write every answer with covariance or reason of refusal")
    _common(verb)

    verb = _verb(verbs, "evaluate", run_evaluate, "localize every picture of a scene and compare with its poses")
    verb.add_argument("map", metavar="MAP")
    verb.add_argument("scene", metavar="SCENE", help=SCENE_HELP)
    verb.add_argument("--json", metavar="FILE", help="write the figures to a file as well")
    verb.add_argument("--report", metavar="DIR", help="write per-frame table, trajectories and plots")
    _common(verb, every=True)

    verb = _verb(verbs, "compare", run_compare, "several maps on one scene, side by side")
    verb.add_argument("maps", metavar="MAP", nargs="+")
    verb.add_argument("scene", metavar="SCENE", help=SCENE_HELP)
    verb.add_argument("--json", metavar="FILE", help="write all figures, by map")
    verb.add_argument("--report", metavar="DIR", help="write report.html with all maps in it")
    _common(verb, every=True)

    verb = _verb(verbs, "play", run_play, "publish a recording on ROS 2 topics: image, camera_info, true poses, /clock")
    verb.add_argument("scene", metavar="SCENE", help=SCENE_HELP)
    verb.add_argument("--speed", type=float, default=1.0, metavar="X", help="recorded seconds in a real one (default:"
                      " %(default)s)")
    verb.add_argument("--rate", type=float, metavar="HZ", help="frames per second, stamped with now, without /clock")
    verb.add_argument("--loop", action="store_true", help="begin again at the end, for ever")
    verb.add_argument("--wait-for", type=int, default=1, metavar="N", help="wait for so many subscribers (default:"
                      " %(default)s)")
    _common(verb, every=True)

    verb = _verb(verbs, "record", run_record, "record ROS 2 topics into an mcap bag, until Ctrl-C")
    verb.add_argument("topics", metavar="TOPIC", nargs="*", help="(default: all)")
    verb.add_argument("-o", "--output", metavar="BAG", required=True, help="folder of the new bag")

    verb = _verb(verbs, "view", run_view, "show a map, and how a scene is localized in it, in Rerun")
    verb.add_argument("map", metavar="MAP")
    verb.add_argument("scene", metavar="SCENE", nargs="?", help=SCENE_HELP)
    verb.add_argument("--save", metavar="FILE.rrd", help="save instead of opening a window")
    _common(verb, every=True)

    verb = _verb(verbs, "info", run_info, "show what a map is and how it was made")
    verb.add_argument("map", metavar="MAP")
    verb.add_argument("--verify", action="store_true", help="read the whole map and compare it with its checksums")

    verb = _verb(verbs, "import", run_import, "turn published weights into files of this package")
    verb.add_argument("kind", metavar="KIND", choices=("ace-encoder", "ace-head", "ace-g", "ace-g-map", "aliked"),
                      help="ace-encoder: ace_encoder_pretrained.pt; ace-head: a scene's head of the ACE release; ace-g:"
                           " the regressor of the ACE-G release; ace-g-map: a map of it; aliked: aliked-n16.pth and its"
                           " like")
    verb.add_argument("file", metavar="FILE")
    verb.add_argument("-o", "--output", metavar="OUT", required=True)
    verb.add_argument("--encoder", metavar="FILE", help="for ace-head and ace-g-map: the encoder that it belongs to")
    verb.add_argument("--regressor", metavar="FILE", help="for ace-g-map: the imported regressor that it belongs to")

    verb = _verb(verbs, "demo", run_demo, "map and localize end to end over real ROS 2 topics")
    verb.add_argument("--scene", metavar="DIR", help="a folder with mapping/ and query/ (default: a rendered room)")
    verb.add_argument("--output", metavar="DIR", default="demo_output", help="(default: %(default)s)")
    verb.add_argument("--budget", type=_seconds, metavar="S", help="seconds for mapping (default: 110 for the rendered"
                      " room, 300 for a scene)")

    verb = _verb(verbs, "bench", run_bench, "time every stage of localization on this machine")
    verb.add_argument("--map", metavar="MAP", help="a map to time (default: untrained weights of the default sizes)")
    verb.add_argument("--repeats", type=int, default=40, metavar="N", help="pictures (default: %(default)s)")
    verb.add_argument("--json", metavar="FILE")
    verb.add_argument("--device", default="auto", choices=("auto", "cpu", "cuda"))

    verb = verbs.add_parser("pretrain", help="train the weights that ship with the package",
                            description="Train the weights that ship with the package. An interrupted run goes on.")
    networks = verb.add_subparsers(dest="what", required=True, metavar="WHAT")
    verb = _verb(networks, "encoder", run_pretrain_encoder, "the encoder of pictures")
    _pretraining(verb, 320, 6000, "6000")
    verb.add_argument("--teacher", metavar="FILE", help="another encoder to learn from as well")
    verb.add_argument("--teacher-every", type=_positive, default=1, metavar="N", help="ask the teacher about every N-th"
                      " picture (default: %(default)s)")
    verb.add_argument("--start", metavar="FILE", help="weights of an earlier run to begin with")
    verb.add_argument("--without", nargs="*", default=(), choices=("coordinates", "reliability"), help="losses to leave"
                      " out, to see what they are worth (without a teacher: no --teacher)")
    verb = _verb(networks, "ace-g", run_pretrain_ace_g, "the regressor of method ace_g")
    _pretraining(verb, 100, None, "6000; from noise 20000")
    verb.add_argument("--encoder", default="compact", metavar="FILE", help="whose features it reads (default:"
                      " %(default)s)")
    verb.add_argument("--query-share", type=_share, default=1.0, metavar="X", help="share of steps that ask about"
                      " pictures of a later visit (the others ask about mapping pictures); with --codes-from noise,"
                      " query steps for a mapping step (default: %(default)s)")
    verb.add_argument("--feature-dropout", type=_share, metavar="X", help="share of a feature's entries left out in"
                      " training (default: 0; from noise 0.1, as in the paper)")
    verb.add_argument("--batch", type=_positive, default=1024, metavar="N", help="patches of a step (default:"
                      " %(default)s)")
    verb.add_argument("--codes-from", choices=("landmarks", "noise"), default="landmarks", help="what a place is to the"
                      " regressor: landmarks, or embeddings learned from noise as published; that one can be started"
                      " by torchrun on several GPUs (default: %(default)s)")
    verb.add_argument("--width", type=_positive, metavar="N", help="(default: 48; from noise 128; the paper: 512)")
    verb.add_argument("--blocks", type=_positive, metavar="N", help="(default: 1; from noise 4; the paper: 6)")
    verb.add_argument("--heads", type=_positive, metavar="N", help="(default: 4; the paper: 8)")
    verb.add_argument("--nearest", type=_positive, default=4, metavar="N", help="landmarks that a patch looks at"
                      " (default: %(default)s)")
    noise = verb.add_argument_group("--codes-from noise", "The published training; defaults are for two CPU cores.")
    noise.add_argument("--mlp-ratio", type=_positive, default=2, metavar="N", help="(the paper: 4; default:"
                       " %(default)s)")
    noise.add_argument("--codes", type=_positive, default=256, metavar="N", help="codes of a place (the paper: 4096;"
                       " default: %(default)s)")
    noise.add_argument("--active", type=_positive, default=8, metavar="N", help="places mapped at a time (default:"
                       " %(default)s)")
    noise.add_argument("--lifetime", type=_positive, default=300, metavar="N", help="steps of mapping before a place"
                       " begins from scratch (the paper: 1000; default: %(default)s)")
    return parser


def _verb(verbs, name: str, run: Callable[[argparse.Namespace], int], text: str) -> argparse.ArgumentParser:
    verb = verbs.add_parser(name, help=text, description=text[0].upper() + text[1:] + ".")
    verb.set_defaults(run=run)
    return verb


def _methods_help() -> str:
    from aceg_ros.methods import registry
    described = ", ".join(f"{spec.name} ({spec.summary})" for spec in registry.specs())
    return f"how to map: {described}; by default, the first of {', '.join(registry.default_names())} that reads the" \
           " encoder and has the flags that are given"


def _method_flags(verb: argparse.ArgumentParser, conflicting: dict[str, Any]) -> None:
    """One flag for each option of any method; it is in the parsed options only if it was given."""
    from aceg_ros.methods import registry
    for name, (option, owners) in registry.all_options().items():
        target = verb if option.conflicts_with is None else conflicting[option.conflicts_with]
        text = f"of --method {' or '.join(owners)}: {option.description}"
        if option.kind is bool:
            target.add_argument(option.flag, dest=name, action="store_true", default=argparse.SUPPRESS, help=text)
            continue
        if option.default is not None:
            text += f" (default: {option.default})"
        target.add_argument(option.flag, dest=name, type=_parsed_by(option), default=argparse.SUPPRESS, help=text,
                            metavar=option.metavar, choices=option.choices or None)


def _parsed_by(option: Option) -> Callable[[str], Any]:
    def parse(text: str) -> Any:
        try:
            return option.parse(text)
        except UserError as error:
            raise argparse.ArgumentTypeError(str(error)) from None

    return parse


def _pretraining(verb: argparse.ArgumentParser, rooms: int, iterations: int | None, said: str) -> None:
    verb.add_argument("--run", dest="run_folder", metavar="DIR", required=True, help="folder of the run; an"
                      " interrupted run in it is resumed")
    verb.add_argument("--scenes", nargs="*", default=(), metavar="SCENE", help="posed pictures to learn from as well"
                      " (mapping parts only)")
    verb.add_argument("--textures", metavar="DIR", help="pictures of surfaces for the rendered rooms")
    verb.add_argument("--rooms", type=_positive, default=rooms, metavar="N", help="rendered rooms (default:"
                      " %(default)s)")
    verb.add_argument("--iterations", type=_positive, default=iterations, metavar="N", help=f"(default: {said})")
    _common(verb)


def _common(verb: argparse.ArgumentParser, every: bool = False) -> None:
    if every:
        verb.add_argument("--every", type=_positive, default=1, metavar="N", help="take every N-th frame only")
        bag = verb.add_argument_group("ROS bags", "What to read of a bag; by default the only topic that fits.")
        bag.add_argument("--image", metavar="TOPIC", help="pictures, raw or compressed")
        bag.add_argument("--camera-info", metavar="TOPIC")
        poses = bag.add_mutually_exclusive_group()
        poses.add_argument("--pose-topic", metavar="TOPIC", help="PoseStamped, PoseWithCovarianceStamped or Odometry")
        poses.add_argument("--tf", nargs=2, metavar=("MAP", "CAMERA"), help="poses from TF; CAMERA '' is the frame_id"
                           " of the pictures")
        bag.add_argument("--pose-of", metavar="FRAME", help="whose pose the topic gives (default: the camera's;"
                         " odometry names it)")
        bag.add_argument("--start", type=float, default=0.0, metavar="S", help="leave out what is before")
        bag.add_argument("--end", type=float, default=float("inf"), metavar="S", help="and after these seconds")
        bag.add_argument("--rectified", action="store_true", help="the pictures are free of distortion already")
    verb.add_argument("--seed", type=_seed, default=0, metavar="N", help="of random choices (default: %(default)s)")
    verb.add_argument("--device", default="auto", choices=("auto", "cpu", "cuda"), help="(default: %(default)s)")


def _seconds(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 5 <= value < 1e6:
        raise argparse.ArgumentTypeError(f"'{text}' is not a number of seconds, 5 or more")
    return value


def _share(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"'{text}' is not a share from 0 to 1")
    return value


def _seed(text: str) -> int:
    if not text.isdecimal() or int(text) >= 2**31:
        raise argparse.ArgumentTypeError(f"'{text}' is not a whole number from 0 to {2**31 - 1}")
    return int(text)


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"'{text}' is not a whole number of 1 or more")
    return int(text)


if __name__ == "__main__":
    sys.exit(main())
