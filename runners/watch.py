"""Watch a trained policy: in a window, or as a video and an animated image made without a screen."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from hoard.records.errors import BadInput
from hoard.records.files import write_atomic
from hoard.runners.evaluate import fresh_seed
from hoard.runners.policy import Policy

GIF_WIDTH, GIF_FPS = 320, 15  # an animated image is for a page: small


def has_display() -> bool:
    """Whether a window can be opened here."""
    return bool(os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY"))


def prepare_offscreen() -> None:
    """Choose renderers that need no screen. Call it before an environment is made; what the user chose stays."""
    if not has_display():
        os.environ.setdefault("MUJOCO_GL", "egl")
        os.environ.setdefault("SDL_VIDEODRIVER", "dummy")


def frames_of(policy: Policy, episodes: int = 1, seed: int = 0) -> tuple[list[np.ndarray], float, list[float]]:
    """Pictures (height, width, 3) uint8 of whole episodes, pictures per second of simulated time, and the returns."""
    prepare_offscreen()
    env = _make(policy, "rgb_array")
    frames: list[np.ndarray] = []
    returns = []
    try:
        for episode in range(episodes):
            total = 0.0
            for reward in _episode(policy, env, fresh_seed(seed, episode)):
                frames.append(_picture(env))
                total += reward
            returns.append(total)
        return frames, float(env.metadata.get("render_fps") or 30), returns
    finally:
        env.close()


def show(policy: Policy, episodes: int = 1, seed: int = 0) -> list[float]:
    """Play episodes in a window; their returns."""
    env = _make(policy, "human")
    try:
        return [sum(_episode(policy, env, fresh_seed(seed, episode))) for episode in range(episodes)]
    finally:
        env.close()


def record(policy: Policy, out: Path, episodes: int = 1, seed: int = 0) -> tuple[list[Path], list[float]]:
    """Write `out`.mp4 and `out`.gif of whole episodes; their paths and the returns."""
    if not out.parent.is_dir():
        raise BadInput(f"{out}: there is no folder {out.parent}")
    frames, fps, returns = frames_of(policy, episodes, seed)
    name = out.with_suffix("") if out.suffix in (".mp4", ".gif") else out
    video, image = Path(f"{name}.mp4"), Path(f"{name}.gif")
    return [save_video(frames, fps, video), save_gif(frames, fps, image)], returns


def save_video(frames: list[np.ndarray], fps: float, path: Path) -> Path:
    """Write an MP4 (H.264)."""
    import imageio.v2 as imageio

    even = [frame[: len(frame) // 2 * 2, : frame.shape[1] // 2 * 2] for frame in frames]  # the codec asks for it

    def write(scratch: Path) -> None:
        writer: Any = imageio.get_writer
        with writer(scratch, format="FFMPEG", mode="I", fps=fps, codec="libx264", macro_block_size=1) as out:
            for frame in even:
                out.append_data(frame)

    write_atomic(path, write, suffix=".mp4")
    return path


def save_gif(frames: list[np.ndarray], fps: float, path: Path, width: int = GIF_WIDTH) -> Path:
    """Write an animated GIF at the speed of the video, with fewer and smaller pictures."""
    from PIL import Image

    keep = max(1, round(fps / GIF_FPS))
    height = round(width * frames[0].shape[0] / frames[0].shape[1])
    small = [Image.fromarray(frame).resize((width, height)) for frame in frames[::keep]]
    palette = small[0].quantize(colors=64)  # one for all pictures: no flicker, small file
    first, *rest = [image.quantize(colors=64, palette=palette, dither=Image.Dither.NONE) for image in small]
    duration = 1000 * keep / fps
    write_atomic(
        path,
        lambda scratch: first.save(
            scratch, format="GIF", save_all=True, append_images=rest, duration=duration, loop=0, optimize=True
        ),
    )
    return path


def _make(policy: Policy, mode: str) -> Any:
    from hoard.envs import make_env

    spec = policy.task.env_spec
    if spec is None:
        raise BadInput(f"{policy.task.dataset}: no environment is known for this dataset, so there is nothing to watch")
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


def _episode(policy: Policy, env: Any, seed: int) -> Iterator[float]:
    """Play one episode; the reward of each step."""
    obs, _ = env.reset(seed=seed)
    policy.reset(seed)
    reward: float | None = None
    ended = False
    while not ended:
        obs, reward, terminated, truncated, _ = env.step(policy(obs, reward))
        yield float(reward)
        ended = terminated or truncated
