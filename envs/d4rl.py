"""Evaluation environments for D4RL's sets on today's Gymnasium and MuJoCo, without the d4rl package.

=============================  =======================================================================================
``hoard/D4RL-<Hand>-v1``       Hand = Door, Hammer, Pen, Relocate: Gymnasium-Robotics' Adroit hands with the rewards,
                               time limits (200, Pen 100) and terminations of D4RL (`AdroitHand`)
``hoard/D4RL-Maze2d-<M>-v1``   M = UMaze, Medium, Large, Open, EvalUMaze, EvalMedium, EvalLarge: D4RL's own map frame,
                               goal radius, start noise and limits (`Maze2d`); `reward_type` sparse or dense
``hoard/D4RL-AntMaze-<M>-v2``  M = UMaze, Medium, Large: D4RL's ant, maze and goals (`AntMaze`)
``hoard/D4RL-Ant-v2``          Ant-v4 with the 111 numbers of the data (`Ant`)
=============================  =======================================================================================

HalfCheetah, Hopper and Walker2d are Gymnasium's v4 as they are: v5 differs (Walker2d's friction, Hopper's last reward).
Constants are those of D4RL's source (version 1.1 of the package). The simulator is not: D4RL's was MuJoCo 2 through
mujoco-py, whose limbs were lighter and whose Hopper and Ant touched the ground differently (README.md here). What has
been compared with real data is the door (one-step replay of 6,729 recorded steps, error below 1e-6); mazes and ants
are built to the same description but nobody has compared them with the published files.
"""

from __future__ import annotations

import copy
import re
import xml.etree.ElementTree as ET
from pathlib import Path
from typing import Any

import gymnasium as gym
import gymnasium_robotics
import mujoco
import numpy as np
from gymnasium.envs import mujoco as gymnasium_mujoco
from gymnasium.envs.registration import EnvSpec
from gymnasium.spaces import Box
from gymnasium.utils import EzPickle
from gymnasium_robotics.envs.maze.maps import LARGE_MAZE, MEDIUM_MAZE, U_MAZE

# --- Adroit ---

# What the reward calls the distance between palm and object, from the observation: minuend, subtrahend.
_PALM_TO_OBJECT = {
    "Door": (slice(35, 38), None),
    "Relocate": (slice(30, 33), None),
    "Hammer": (slice(33, 36), slice(36, 39)),
}
_PEN_HEIGHT, _PEN_DROPPED = 26, 0.075


def reward_sign_is_wrong(env_id: str, version: str) -> bool:
    """Whether Gymnasium-Robotics `version` adds 0.1 times the distance of palm and object in `env_id`.

    D4RL and the documentation subtract it. The sign was lost in 1.2.1 (pull request #220) and the notice printed by
    1.4.2 announces correct ids ending in -v2; the -v1 ids keep the wrong sign. Sparse rewards have no such term.
    """
    hand = re.fullmatch(r"AdroitHand(\w+?)-v1", env_id)
    numbers = tuple(int(part) for part in re.findall(r"\d+", version)[:3])
    return bool(hand) and hand[1] in _PALM_TO_OBJECT and numbers >= (1, 2, 1)  # type: ignore[index]


class AdroitHand(gym.Env, EzPickle):
    """One of Gymnasium-Robotics' Adroit hands, paid and ended as in D4RL.

    `hand` is Door, Hammer, Pen or Relocate. Where the package's reward has the wrong sign (`reward_sign_is_wrong`) it
    is put right from the observation after the step: r - 0.2 d, exact to rounding, since the package paid +0.1 d and
    D4RL -0.1 d. The pen terminates when it drops below 0.075 m, which Gymnasium-Robotics leaves out. `adroit` is the
    package's own environment, for `set_env_state`.
    """

    metadata = {"render_modes": ["human", "rgb_array", "depth_array"], "render_fps": 100}  # noqa: RUF012

    def __init__(self, hand: str, render_mode: str | None = None):
        EzPickle.__init__(self, hand, render_mode)
        versions = [
            int(name.rsplit("-v", 1)[1]) for name in gym.registry if re.fullmatch(rf"AdroitHand{hand}-v\d+", name)
        ]
        if not versions:
            raise ValueError(f"hand {hand!r}: must be Door, Hammer, Pen or Relocate")
        env_id = f"AdroitHand{hand}-v{max(versions)}"
        self.hand, self.render_mode = hand, render_mode
        self.adroit: Any = gym.make(env_id, render_mode=render_mode, disable_env_checker=True).unwrapped
        self.corrected = reward_sign_is_wrong(env_id, gymnasium_robotics.__version__)
        self.observation_space, self.action_space = self.adroit.observation_space, self.adroit.action_space

    def reset(self, *, seed: int | None = None, options: dict | None = None) -> tuple[np.ndarray, dict]:
        super().reset(seed=seed)
        self.adroit.np_random = self.np_random  # one generator: saving env.np_random saves all the randomness
        return self.adroit.reset(options=options)

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict]:
        obs, reward, terminated, truncated, info = self.adroit.step(action)
        if self.corrected:
            palm, thing = _PALM_TO_OBJECT[self.hand]
            reward -= 0.2 * np.linalg.norm(obs[palm] - (obs[thing] if thing else 0.0))
        if self.hand == "Pen":
            terminated = bool(obs[_PEN_HEIGHT] < _PEN_DROPPED)
        return obs, float(reward), bool(terminated), bool(truncated), {"success": bool(info["success"])}

    def render(self):
        return self.adroit.render()

    def close(self) -> None:
        self.adroit.close()


# --- mazes ---

_FLIPPED_U = [[1, 1, 1, 1, 1], [1, 0, 0, 0, 1], [1, 0, 1, 1, 1], [1, 0, 0, 0, 1], [1, 1, 1, 1, 1]]
_OPEN = [[1] * 7, *([1, 0, 0, 0, 0, 0, 1] for _ in range(3)), [1] * 7]
# Walls as D4RL draws them; its U, medium and large maps are those of Gymnasium-Robotics, the eval maps are these
# (the large one and the medium one turned upside down).
MAPS = {
    "UMaze": U_MAZE,
    "Medium": MEDIUM_MAZE,
    "Large": LARGE_MAZE,
    "Open": _OPEN,
    "EvalUMaze": _FLIPPED_U,
    "EvalMedium": None,
    "EvalLarge": None,
}
MAPS["EvalMedium"] = [
    [int(cell) for cell in row]
    for row in ("11111111", "10000001", "10101101", "10000101", "11100111", "10000001", "10011001", "11111111")
]
MAPS["EvalLarge"] = [
    [int(cell) for cell in row]
    for row in (
        "111111111111", "100100010001", "110111010101", "100101000001", "101101001101",
        "100000010001", "101101010111", "100001000001", "111111111111",
    )
]  # fmt: skip
MAZE2D_GOALS = {
    "UMaze": (1, 1), "Medium": (6, 6), "Large": (7, 9), "Open": (2, 3),
    "EvalUMaze": (1, 3), "EvalMedium": (1, 6), "EvalLarge": (1, 9),
}  # fmt: skip
MAZE2D_LIMITS = {"UMaze": 300, "Medium": 600, "Large": 800, "Open": 150}
MAZE2D_LIMITS |= {f"Eval{name}": MAZE2D_LIMITS[name] for name in ("UMaze", "Medium", "Large")}
MAZE2D_RADIUS = 0.5
ANTMAZE_GOALS = {"UMaze": (3, 1), "Medium": (6, 6), "Large": (7, 9)}
ANTMAZE_LIMITS = {"UMaze": 700, "Medium": 1000, "Large": 1000}
_ANT_CELL = 4.0


def maze2d_reward(position: np.ndarray, goal: tuple[int, int], reward_type: str) -> np.ndarray:
    """D4RL's maze2d reward at `position` (..., 2): sparse 1 within 0.5 of the goal, dense exp(-distance)."""
    distance = np.linalg.norm(position - np.asarray(goal, np.float64), axis=-1)
    return np.exp(-distance) if reward_type == "dense" else (distance <= MAZE2D_RADIUS).astype(np.float64)


class _Simulation(gym.Env):
    """A MuJoCo model without rendering. Subclasses set the spaces, `step` and `reset`."""

    metadata = {"render_modes": []}  # noqa: RUF012

    def _load(self, xml: str, frame_skip: int) -> None:
        self.model = mujoco.MjModel.from_xml_string(xml)
        self.data = mujoco.MjData(self.model)
        self.frame_skip = frame_skip
        self.init_qpos, self.init_qvel = self.data.qpos.copy(), self.data.qvel.copy()

    def set_state(self, qpos: np.ndarray, qvel: np.ndarray) -> None:
        """Positions (nq,) and velocities (nv,); everything that follows from them is recomputed."""
        self.data.qpos[:], self.data.qvel[:] = qpos, qvel
        mujoco.mj_forward(self.model, self.data)

    def _simulate(self, control: np.ndarray) -> None:
        self.data.ctrl[:] = control
        mujoco.mj_step(self.model, self.data, nstep=self.frame_skip)

    def _observe(self) -> np.ndarray:
        return np.concatenate([self.data.qpos, self.data.qvel])


def _maze2d_xml(maze_map: list[list[int]]) -> str:
    """A 0.1 m ball on two slides in D4RL's frame: cell (i, j) is a wall centred at (i + 1, j + 1), x along the rows.

    The ball starts at (1.2, 1.2), so position (x, y) of the observation lies at (x + 1.2, y + 1.2) of the room: walls
    are 0.2 nearer on one side than on the other, as in D4RL.
    """
    walls = "".join(
        f'<geom type="box" pos="{i + 1} {j + 1} 0" size="0.5 0.5 0.2" conaffinity="1"/>'
        for i, row in enumerate(maze_map)
        for j, cell in enumerate(row)
        if cell == 1
    )
    return f"""<mujoco>
  <compiler inertiafromgeom="true" angle="radian"/>
  <option timestep="0.01" gravity="0 0 0" iterations="20" integrator="Euler"/>
  <default>
    <joint damping="1" limited="false"/>
    <geom friction=".5 .1 .1" density="1000" margin="0.002" condim="1" contype="2" conaffinity="1"/>
  </default>
  <worldbody>
    <geom name="ground" type="plane" size="40 40 0.25" pos="0 0 -0.1" contype="1" conaffinity="0"/>
    <body name="particle" pos="1.2 1.2 0">
      <geom type="sphere" size="0.1" contype="1"/>
      <joint name="ball_x" type="slide" axis="1 0 0"/>
      <joint name="ball_y" type="slide" axis="0 1 0"/>
    </body>
    {walls}
  </worldbody>
  <actuator>
    <motor joint="ball_x" ctrlrange="-1 1" ctrllimited="true" gear="100"/>
    <motor joint="ball_y" ctrlrange="-1 1" ctrllimited="true" gear="100"/>
  </actuator>
</mujoco>"""


class Maze2d(_Simulation, EzPickle):
    """D4RL's maze2d: a ball pushed to a fixed goal that the observation (x, y, vx, vy) does not show.

    Reward at every step (`maze2d_reward`), no termination. A reset puts the ball into any free cell, the goal's
    included, moved by U(-0.1, 0.1) per coordinate, with velocity 0.1 N(0, 1).
    """

    def __init__(self, maze: str = "UMaze", reward_type: str = "sparse", render_mode: str | None = None):
        EzPickle.__init__(self, maze, reward_type, render_mode)
        if reward_type not in ("sparse", "dense"):
            raise ValueError(f"reward_type {reward_type!r}: must be sparse or dense")
        self._load(_maze2d_xml(MAPS[maze]), frame_skip=1)
        self.maze, self.render_mode = maze, render_mode
        self.reward_type, self.goal = reward_type, MAZE2D_GOALS[maze]
        self.free_cells = np.argwhere(np.array(MAPS[maze]) == 0)
        self.observation_space = Box(-np.inf, np.inf, (4,), np.float64)
        self.action_space = Box(-1.0, 1.0, (2,), np.float32)
        self._reached = False

    def reset(self, *, seed: int | None = None, options: dict | None = None) -> tuple[np.ndarray, dict]:
        super().reset(seed=seed)
        mujoco.mj_resetData(self.model, self.data)
        cell = self.free_cells[self.np_random.integers(len(self.free_cells))]
        self.set_state(cell + self.np_random.uniform(-0.1, 0.1, 2), 0.1 * self.np_random.standard_normal(2))
        self._reached = False
        return self._observe(), {"success": False}

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict]:
        self.set_state(self.data.qpos, np.clip(self.data.qvel, -5.0, 5.0))  # the force would speed it up without end
        self._simulate(np.clip(action, -1.0, 1.0))
        obs = self._observe()
        self._reached |= bool(np.linalg.norm(obs[:2] - self.goal) <= MAZE2D_RADIUS)
        reward = float(maze2d_reward(obs[:2], self.goal, self.reward_type))
        return obs, reward, False, False, {"success": self._reached}


def _antmaze_xml(maze_map: list[list[int]]) -> str:
    """Gymnasium's ant made D4RL's (steps of 0.02 s, contacts, motors of 30), with walls; cell (1, 1) is the origin."""
    root = ET.parse(Path(gymnasium_mujoco.__file__).parent / "assets" / "ant.xml").getroot()

    def part(path: str) -> ET.Element:
        element = root.find(path)
        assert element is not None, path
        return element

    part("option").set("timestep", "0.02")
    part("default/geom").attrib.update(solref=".02 1", solimp=".8 .8 .01")
    for motor in part("actuator"):
        motor.attrib.pop("gear", None)
        motor.set("ctrlrange", "-30 30")
    for i, row in enumerate(maze_map):
        for j, cell in enumerate(row):
            if cell == 1:
                place = f"{(j - 1) * _ANT_CELL} {(i - 1) * _ANT_CELL} {_ANT_CELL / 4}"
                size = f"{_ANT_CELL / 2} {_ANT_CELL / 2} {_ANT_CELL / 4}"
                wall = {"type": "box", "pos": place, "size": size, "contype": "1", "conaffinity": "1"}
                ET.SubElement(part("worldbody"), "geom", wall)
    return ET.tostring(root, encoding="unicode")


class AntMaze(_Simulation, EzPickle):
    """D4RL's antmaze: the ant walks from the corner cell to a goal; reward 1 and termination within 0.5 m of it.

    Observation (29,): positions (15, x and y first) and velocities (14); the goal is not in it. Every reset draws a
    new goal in the goal's cell: its centre moved by U(0, 1) + U(0, 0.5) per coordinate (D4RL's v2; its v0 did so once,
    when the environment was made). Actions in [-1, 1] are scaled to the motors' 30.
    """

    def __init__(self, maze: str = "UMaze", render_mode: str | None = None):
        EzPickle.__init__(self, maze, render_mode)
        self._load(_antmaze_xml(MAPS[maze]), frame_skip=5)
        self.maze, self.render_mode = maze, render_mode
        row, column = ANTMAZE_GOALS[maze]
        self.goal_cell = np.array([column - 1, row - 1]) * _ANT_CELL
        self.goal = self.goal_cell.copy()
        self.observation_space = Box(-np.inf, np.inf, (29,), np.float64)
        self.action_space = Box(-1.0, 1.0, (8,), np.float32)

    def reset(self, *, seed: int | None = None, options: dict | None = None) -> tuple[np.ndarray, dict]:
        super().reset(seed=seed)
        self.goal = self.goal_cell + self.np_random.uniform(0, 1.0, 2) + self.np_random.uniform(0, 0.5, 2)
        mujoco.mj_resetData(self.model, self.data)
        qpos = self.init_qpos + self.np_random.uniform(-0.1, 0.1, self.model.nq)
        self.set_state(qpos, self.init_qvel + 0.1 * self.np_random.standard_normal(self.model.nv))
        return self._observe(), {"success": False}

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict]:
        self._simulate(30.0 * np.clip(action, -1.0, 1.0))
        obs = self._observe()
        reached = bool(np.linalg.norm(obs[:2] - self.goal) <= 0.5)
        return obs, float(reached), reached, False, {"success": reached}


# --- Ant ---


class Ant(gym.Wrapper, EzPickle):
    """Ant-v4 with the observation of D4RL's ant sets: 27 numbers and 84 contact forces.

    With `contact_forces` these are the simulator's, and cost a part of the reward, as in Gym's Ant-v2. Without, they
    are zeros: MuJoCo 2.0 and mujoco-py are known to have reported none (from memory), and a policy that has learnt
    from zeros must see zeros. Which one fits is seen in the data itself.
    """

    def __init__(self, contact_forces: bool = True, render_mode: str | None = None):
        EzPickle.__init__(self, contact_forces, render_mode)
        env = gym.make("Ant-v4", use_contact_forces=contact_forces, render_mode=render_mode, disable_env_checker=True)
        super().__init__(env.unwrapped)
        self.contact_forces = contact_forces
        self.observation_space = Box(-np.inf, np.inf, (111,), np.float64)

    def _pad(self, obs: np.ndarray) -> np.ndarray:
        return obs if self.contact_forces else np.concatenate([obs, np.zeros(84)])

    def reset(self, *, seed: int | None = None, options: dict | None = None) -> tuple[np.ndarray, dict]:
        obs, info = self.env.reset(seed=seed, options=options)
        return self._pad(obs), info

    def step(self, action: Any) -> tuple[np.ndarray, Any, bool, bool, dict]:
        obs, *rest = self.env.step(action)
        return self._pad(obs), *rest  # type: ignore[return-value]


# --- ids ---


def _register(name: str, entry_point: str, limit: int, **kwargs: Any) -> None:
    gym.register(f"hoard/D4RL-{name}", f"hoard.envs.d4rl:{entry_point}", max_episode_steps=limit, kwargs=kwargs)


for _hand in ("Door", "Hammer", "Pen", "Relocate"):
    _register(f"{_hand}-v1", "AdroitHand", 100 if _hand == "Pen" else 200, hand=_hand)
for _maze, _limit in MAZE2D_LIMITS.items():
    _register(f"Maze2d-{_maze}-v1", "Maze2d", _limit, maze=_maze, reward_type="sparse")
for _maze, _limit in ANTMAZE_LIMITS.items():
    _register(f"AntMaze-{_maze}-v2", "AntMaze", _limit, maze=_maze)
_register("Ant-v2", "Ant", 1000, contact_forces=True)


def spec(env_id: str, **kwargs: Any) -> EnvSpec:
    """The specification of a registered environment with some of its arguments replaced."""
    out = copy.deepcopy(gym.spec(env_id))
    out.kwargs.update(kwargs)
    return out
