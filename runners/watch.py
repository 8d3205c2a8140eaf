"""Watch a trained policy: in a window, or as a video and an animated image made without a screen.

What is shown are the episodes that `hoard evaluate` plays with the same seed and number of episodes. They are played
once for their actions, then repeated with these before the camera, an episode at a time.
"""

from __future__ import annotations

import math
import os
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np

from hoard.records import media
from hoard.records.errors import BadInput
from hoard.records.files import write_atomic
from hoard.runners.policy import Policy, score

GIF_WIDTH, GIF_FPS = 320, 15  # an animated image is for a page: small
SLOWEST_FPS = 10  # of one that has to leave out more pictures: then it is quicker than life


@dataclass(frozen=True)
class Rollout:
    """Evaluation episodes: their rows, and the actions (T, action_dim) of each."""

    seed: int
    rows: list[dict[str, Any]]
    actions: list[np.ndarray]

    @property
    def returns(self) -> list[float]:
        return [row["return"] for row in self.rows]


@dataclass(frozen=True)
class Recording:
    """The files written, and the episodes that they show."""

    paths: list[Path]
    rollout: Rollout


def has_display() -> bool:
    """Whether a window can be opened here."""
    return sys.platform == "darwin" or bool(os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY"))


def prepare_offscreen() -> None:
    """Choose renderers that need no screen. Call it before an environment is made; what the user chose stays."""
    if not has_display():
        os.environ.setdefault("MUJOCO_GL", "egl")
        os.environ.setdefault("SDL_VIDEODRIVER", "dummy")


def can_encode_video() -> bool:
    """Whether there is an ffmpeg for MP4 files."""
    try:
        import imageio_ffmpeg

        imageio_ffmpeg.get_ffmpeg_exe()
    except (ImportError, RuntimeError):
        return False
    return True


def roll_out(policy: Policy, episodes: int = 1, seed: int = 0) -> Rollout:
    """Play the episodes of `hoard evaluate --episodes N --seed S`."""
    actions: dict[int, list[np.ndarray]] = {number: [] for number in range(episodes)}

    def witness(number: int, _: gym.Env, action: np.ndarray | None, obs: np.ndarray) -> None:
        if action is not None:
            actions[number].append(action.copy())

    _check_environment(policy)
    rows = score(policy, episodes, seed, witness)
    return Rollout(seed, rows, [np.array(own) for own in actions.values()])


def show(policy: Policy, episodes: int = 1, seed: int = 0) -> list[float]:
    """Play episodes in a window; their returns."""
    env = _make(policy, "human")
    try:
        rollout = roll_out(policy, episodes, seed)
        for _ in _repeat(env, rollout):
            pass
        return rollout.returns
    finally:
        env.close()


def record(
    policy: Policy, out: Path, episodes: int = 1, seed: int = 0, *, width: int = GIF_WIDTH, most: int | None = None
) -> Recording:
    """Write whole episodes as `out`.mp4 and `out`.gif, or the one that `out` ends in; without an ffmpeg no MP4.

    The GIF is `width` pixels wide. With `most` pictures at the most, a long one plays quicker than life rather than
    jerkily. Raises BadInput if nothing can be rendered, or if an MP4 alone is asked for and cannot be made.
    """
    if not out.parent.is_dir():
        raise BadInput(f"{out}: there is no folder {out.parent}")
    kinds = [out.suffix] if out.suffix in (".mp4", ".gif") else [".mp4", ".gif"]
    name = out.with_suffix("") if out.suffix in kinds else out
    if ".mp4" in kinds and not can_encode_video():
        if kinds == [".mp4"]:
            raise BadInput(f"{out}: there is no ffmpeg (pip install imageio-ffmpeg); a name in .gif needs none")
        kinds = [".gif"]
    paths = {kind: Path(f"{name}{kind}") for kind in kinds}
    env = _make(policy, "rgb_array")
    try:
        rollout = roll_out(policy, episodes, seed)
        film = _Film(float(env.metadata.get("render_fps") or 30), sum(map(len, rollout.actions)), width, most)
        pictures = (_picture(env) for _ in _repeat(env, rollout))
        if ".mp4" in paths:
            write_atomic(paths[".mp4"], lambda scratch: film.play(pictures, scratch), suffix=".mp4")
        else:
            film.play(pictures)
        if ".gif" in paths:
            film.save_gif(paths[".gif"], lambda speed: _record_of(policy, rollout, speed))
    finally:
        env.close()
    return Recording(list(paths.values()), rollout)


class _Film:
    """Pictures as they come: all of them into a video, some of them, smaller, for an animated image."""

    def __init__(self, fps: float, count: int, width: int, most: int | None) -> None:
        self.fps, self.width = fps, width
        self.every = max(1, round(fps / GIF_FPS), math.ceil(count / most) if most else 1)
        self.small: list[Any] = []

    def play(self, pictures: Iterator[np.ndarray], video: Path | None = None) -> None:
        """Take all pictures in; `video` becomes an MP4 (H.264) of them."""
        if video is None:
            for number, picture in enumerate(pictures):
                self._keep(number, picture)
            return
        import imageio.v2 as imageio

        writer: Any = imageio.get_writer
        with writer(video, format="FFMPEG", mode="I", fps=self.fps, codec="libx264", macro_block_size=1) as out:
            for number, picture in enumerate(pictures):
                self._keep(number, picture)
                out.append_data(picture[: len(picture) // 2 * 2, : picture.shape[1] // 2 * 2])  # the codec asks for it

    def _keep(self, number: int, picture: np.ndarray) -> None:
        from PIL import Image

        if number % self.every == 0:
            height = round(self.width * picture.shape[0] / picture.shape[1])
            image = Image.fromarray(picture).resize((self.width, height))
            if not self.small:
                self.small.append(image.quantize(colors=64))  # one palette for all pictures: no flicker, small file
            else:
                self.small.append(image.quantize(colors=64, palette=self.small[0], dither=Image.Dither.NONE))

    def save_gif(self, path: Path, record: Callable[[float], str]) -> None:
        """Write the animated image with its record, which is told how much quicker than life it plays."""
        life = 1000 * self.every / self.fps
        duration = min(life, 1000 / SLOWEST_FPS) if self.every > round(self.fps / GIF_FPS) else life
        options: dict[str, Any] = {"format": "GIF", "save_all": True, "loop": 0, "optimize": True}
        options |= {"append_images": self.small[1:], "duration": duration, "comment": record(life / duration)}
        write_atomic(path, lambda scratch: self.small[0].save(scratch, **options))


def _record_of(policy: Policy, rollout: Rollout, speed: float) -> str:
    task, count = policy.task, len(rollout.rows)
    assert task.env_spec is not None
    quicker = f", played {speed:.2g} times as fast" if speed > 1.05 else ""
    alt = (
        f"Film of {policy.algo} on {task.dataset}, {count} evaluation episode{'s' * (count > 1)} from seed "
        f"{rollout.seed}{quicker}: {media.outcome(rollout.rows)}."
    )
    return media.record_of(alt, policy.algo, task.dataset, task.env_spec.id, rollout.seed, rollout.rows, speed=speed)


def _check_environment(policy: Policy) -> None:
    if policy.task.env_spec is None:
        raise BadInput(f"{policy.task.dataset}: no environment is known for this dataset, so there is nothing to watch")


def _make(policy: Policy, mode: str) -> Any:
    from hoard.envs import make_env

    _check_environment(policy)
    spec = policy.task.env_spec
    assert spec is not None
    try:
        env = make_env(spec, render_mode=mode)
    except Exception as error:  # renderers fail in many ways
        raise BadInput(f"{spec.id} cannot be rendered as {mode}: {type(error).__name__}: {error}") from error
    if mode not in env.metadata.get("render_modes", []):
        env.close()
        raise BadInput(f"{spec.id} cannot be rendered: it has no mode '{mode}'")
    _follow(env.unwrapped)
    return env


def _follow(env: Any) -> None:
    """Look through the model's camera that goes along with the robot, where there is one."""
    renderer = getattr(env, "mujoco_renderer", None)
    if renderer is not None:
        import mujoco

        camera = mujoco.mj_name2id(env.model, mujoco.mjtObj.mjOBJ_CAMERA, "track")
        if camera >= 0:
            renderer.camera_id = camera


def _picture(env: Any) -> np.ndarray:
    try:
        return np.asarray(env.render(), np.uint8)
    except Exception as error:
        raise BadInput(
            f"no picture could be rendered ({type(error).__name__}: {error}); without a screen MuJoCo needs EGL "
            "(Debian: libegl1) or, with MUJOCO_GL=osmesa, OSMesa (libosmesa6)"
        ) from error


def _repeat(env: Any, rollout: Rollout) -> Iterator[None]:
    """Step an environment through the episodes; yields after each step.

    Raises BadInput where an episode does not come out the same: what is seen would not be what was scored.
    """
    for row, actions in zip(rollout.rows, rollout.actions):
        env.reset(seed=row["eval_seed"])
        total = 0.0
        for action in actions:
            total += float(env.step(action)[1])
            yield
        if total != row["return"]:
            raise BadInput(
                f"{env.spec.id}: the episode from seed {row['eval_seed']} returned {row['return']} and, repeated with "
                f"the same actions, {total}; an environment that its seed does not determine cannot be filmed"
            )
