"""`hoard evaluate`, `hoard watch`, `hoard paths`, `hoard export`: what one does with a trained policy."""

from __future__ import annotations

import argparse
import json
import statistics
from pathlib import Path
from typing import Any

from hoard.records.errors import BadInput


def add_parsers(commands: Any) -> None:
    evaluate = commands.add_parser(
        "evaluate",
        help="score the trained policy of a run once more",
        description="Roll the policy of a finished run out in its environment, on episodes that belong to no run.",
        epilog="example: hoard evaluate results/runs/iql/hoard-pendulum-mixed-v0/0-1a2b3c4d5e6f --episodes 100",
        allow_abbrev=False,
    )
    evaluate.add_argument("--json", action="store_true", help="one JSON object with a row per episode")
    evaluate.add_argument(
        "--eval-processes", type=int, default=1, metavar="N",
        help="processes that step the environments; the rows are the same (default: 1)",
    )  # fmt: skip
    watch = commands.add_parser(
        "watch",
        help="see a trained policy: in a window, or as video and animated image",
        description="With a screen a window opens; without one, or with --out, an MP4 and a GIF are written. The "
        "episodes are those of `hoard evaluate` with the same --episodes and --seed.",
        epilog="example: hoard watch results/runs/iql/hoard-pointmaze-umaze-v0/0-1a2b3c4d5e6f --out maze",
        allow_abbrev=False,
    )
    watch.add_argument(
        "--out",
        type=Path,
        metavar="NAME",
        help="write NAME.mp4 and NAME.gif, or the one that NAME ends in (default without a screen: policy in RUN)",
    )
    paths = commands.add_parser(
        "paths",
        help="the ways through a maze, drawn: of the data, and of a trained policy",
        description="Walls, starts, goals and ways, for mazes: of a sample of the data's episodes, "
        "and of the policy in the episodes of `hoard evaluate` with the same --episodes and --seed.",
        epilog="example: hoard paths results/runs/iql/hoard-pointmaze-stitch-v0/0-1a2b3c4d5e6f; "
        "hoard paths hoard/pointmaze/stitch-v0 --out stitch.png",
        allow_abbrev=False,
    )
    paths.add_argument("of", metavar="RUN|DATASET", help="folder of a finished run, or the id of a dataset")
    paths.add_argument(
        "--out", type=Path, metavar="FILE", help=".png, .svg or .pdf (default for a run: paths.png in its folder)"
    )
    paths.add_argument("--episodes", type=int, default=20, help="of the policy (default: 20)")
    paths.add_argument("--sample", type=int, default=40, help="episodes of the data (default: 40)")
    paths.add_argument("--seed", type=int, default=0, help="of the policy's episodes and of the sample (default: 0)")
    paths.set_defaults(call=_paths)
    export = commands.add_parser(
        "export",
        help="a trained policy as TorchScript or ONNX",
        description="The file is kept only if it gives the policy's actions over whole episodes.",
        epilog="example: hoard export results/runs/iql/hoard-pendulum-mixed-v0/0-1a2b3c4d5e6f --format onnx",
        allow_abbrev=False,
    )
    export.add_argument("--format", choices=("torchscript", "onnx"), default="torchscript")
    export.add_argument(
        "--out", type=Path, metavar="FILE", help="default: policy.pt or policy.onnx in the run's folder"
    )
    for command, episodes in ((evaluate, 100), (watch, 1), (export, 2)):
        command.add_argument("run", type=Path, help="folder of a finished run")
        command.add_argument("--episodes", type=int, default=episodes, help=f"how many (default: {episodes})")
        command.add_argument("--seed", type=int, default=0, help="seed of the episodes (default: 0)")
    evaluate.set_defaults(call=_evaluate)
    watch.set_defaults(call=_watch)
    export.set_defaults(call=_export)


def _loaded(args: argparse.Namespace) -> Any:
    if args.episodes < 1 or args.seed < 0:
        raise BadInput("--episodes must be at least 1 and --seed at least 0")
    from hoard.runners.policy import load_policy

    return load_policy(args.run)


def _evaluate(args: argparse.Namespace) -> int:
    from hoard.runners.policy import score

    if args.eval_processes < 1:
        raise BadInput(f"--eval-processes {args.eval_processes}: must be at least 1")
    policy = _loaded(args)
    rows = score(policy, args.episodes, args.seed, processes=args.eval_processes)
    if args.json:
        print(json.dumps({"run": str(args.run), "dataset": policy.task.dataset, "episodes": rows}))
        return 0
    print(f"{policy.algo} on {policy.task.dataset}, {len(rows)} episodes of {policy.task.env_spec.id}")
    columns = [("return", [row["return"] for row in rows]), ("length", [row["length"] for row in rows])]
    if policy.task.ref_min is not None:
        columns.append(("score", [row["score"] for row in rows]))
    if any(row["success"] is not None for row in rows):
        columns.append(("success", [float(bool(row["success"])) for row in rows]))
    for name, values in columns:
        mean, spread = statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else 0.0
        print(f"{name:8} mean {mean:9.2f}   std {spread:8.2f}   {min(values):9.2f} to {max(values):.2f}")
    return 0


def _watch(args: argparse.Namespace) -> int:
    from hoard.runners import watch

    watch.prepare_offscreen()  # before anything imports a renderer
    policy = _loaded(args)
    if args.out is None and watch.has_display():
        returns = watch.show(policy, args.episodes, args.seed)
    else:
        recording = watch.record(policy, args.out or args.run / "policy", args.episodes, args.seed)
        print(*recording.paths, sep="\n")
        returns = recording.rollout.returns
    print(f"returns: {', '.join(f'{value:.2f}' for value in returns)}")
    return 0


def _paths(args: argparse.Namespace) -> int:
    from hoard import api
    from hoard.records.folder import PATHS

    if args.seed < 0:
        raise BadInput(f"--seed {args.seed}: must be at least 0")
    run = Path(args.of)
    if not run.is_dir() and args.out is None:
        raise BadInput(f"{args.of} is no folder of a run; for a dataset, give --out FILE")
    print(api.paths(args.of, args.out or run / PATHS, args.episodes, args.sample, args.seed))
    return 0


def _export(args: argparse.Namespace) -> int:
    from hoard.runners.export import export

    policy = _loaded(args)
    out = args.out or args.run / ("policy.pt" if args.format == "torchscript" else "policy.onnx")
    if not out.parent.is_dir():
        raise BadInput(f"--out {out}: there is no folder {out.parent}")
    gap = export(policy, out, args.format, args.episodes, args.seed)
    inputs = "obs, return_so_far" if policy.uses_history else "obs"
    print(f"{out}: action({inputs}), equal to the policy within {gap:.1g} of the action's range")
    return 0
