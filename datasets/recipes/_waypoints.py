"""The controller that walks through point mazes: a path of cells, and a PD law from waypoint to waypoint.

It follows the one behind Minari's pointmaze sets, quirks included; MBRCSL uses the same (`stitch`) with another path
search. Both facts are read from public code; the tests hold our episode counts and returns to measured ones.
"""

import functools
import math
from collections import deque

import numpy as np
from gymnasium_robotics.envs.maze.maze_v4 import Maze

Cell = tuple[int, int]
# The order in which neighbours enter the frontier decides which of several paths a depth-first search finds.
NEIGHBOURS = ((0, 1), (0, -1), (-1, 0), (1, 0))

REPLAN_DISTANCE = 1e-3  # a goal that moved further than this is a new goal
ARRIVAL_DISTANCE = 0.1  # from the waypoint, to head for the next one
JITTER = 0.2  # intermediate waypoints lie at the cell's centre minus U(0, JITTER) per coordinate
GAIN_P, GAIN_D = 10.0, 1.0


@functools.cache
def find_path(walls: tuple[tuple[bool, ...], ...], start: Cell, goal: Cell, depth_first: bool) -> tuple[Cell, ...]:
    """The cells from ``start`` (excluded) to ``goal`` (included), by depth-first or breadth-first search.

    Depth-first paths are not the shortest. They are what the published pointmaze sets follow: their metadata names
    Q-iteration, but only the depth-first search reproduces their number of episodes.
    """
    frontier, parent = deque([start]), {start: start}
    while frontier:
        cell = frontier.pop() if depth_first else frontier.popleft()
        if cell == goal:
            break
        for di, dj in NEIGHBOURS:
            neighbour = (cell[0] + di, cell[1] + dj)
            if not walls[neighbour[0]][neighbour[1]] and neighbour not in parent:
                parent[neighbour] = cell
                frontier.append(neighbour)
    path = []
    while goal != start:
        path.append(goal)
        goal = parent[goal]
    return tuple(reversed(path))


class WaypointController:
    """Unclipped PD forces along a path of cells to a goal that may move.

    The first waypoint is the bare centre of the first cell of the path, later ones are jittered (needs ``rng``; exact
    centres without), the last one is the goal itself. Quirk, kept: where the path has one cell only, the ball heads
    for that cell's centre and stays there, up to 0.36 m from the goal.
    """

    def __init__(self, maze: Maze, depth_first: bool, rng: np.random.RandomState | None = None):
        self.walls = tuple(tuple(cell == 1 for cell in row) for row in maze.maze_map)
        self.x_centre, self.y_centre = maze.x_map_center, maze.y_map_center
        self.depth_first, self.rng = depth_first, rng
        self.goal = (math.inf, math.inf)

    def __call__(self, state: np.ndarray, goal: np.ndarray) -> np.ndarray:
        """The force at ``state`` (x, y, vx, vy) on the way to ``goal`` (x, y)."""
        # Plain floats: on vectors of two they are several times faster than numpy, and a set takes 1e6 steps.
        x, y, vx, vy = state.tolist()
        goal_x, goal_y = goal.tolist()
        if math.hypot(self.goal[0] - goal_x, self.goal[1] - goal_y) > REPLAN_DISTANCE:
            self.goal = (goal_x, goal_y)
            self.path = deque(find_path(self.walls, self._cell(x, y), self._cell(goal_x, goal_y), self.depth_first))
            self.aim = self._centre(self.path.popleft()) if self.path else self.goal
        if self.path and math.hypot(self.aim[0] - x, self.aim[1] - y) <= ARRIVAL_DISTANCE:
            centre = self._centre(self.path.popleft())
            self.aim = self._jittered(centre) if self.path else self.goal
        return np.array([GAIN_P * (self.aim[0] - x) - GAIN_D * vx, GAIN_P * (self.aim[1] - y) - GAIN_D * vy])

    def _cell(self, x: float, y: float) -> Cell:
        return math.floor(self.y_centre - y), math.floor(x + self.x_centre)

    def _centre(self, cell: Cell) -> tuple[float, float]:
        return cell[1] + 0.5 - self.x_centre, self.y_centre - cell[0] - 0.5

    def _jittered(self, centre: tuple[float, float]) -> tuple[float, float]:
        if self.rng is None:
            return centre
        dx, dy = self.rng.uniform(size=2) * JITTER
        return centre[0] - dx, centre[1] - dy
