"""What D4RL published: 155 names, their files, reference returns, time limits, sizes and hashes; and what is wrong.

Names, addresses and reference returns are those of D4RL's `infos.py` (Fu et al., 2020; data CC BY 4.0), time limits
those its environments are registered with. Sizes and SHA-256 are from the D4RL checksum lists of TensorFlow Datasets;
the three of kitchen come from a secondary source and are not certain. Facts about defects name the D4RL issue.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

BASE_URL = "http://rail.eecs.berkeley.edu/datasets/offline_rl/"


@dataclass(frozen=True)
class Entry:
    """One published set. `limit` is the time limit in steps its environment has; `size` in bytes, 0 if not known.

    `hash_is_certain` is false where the hash may itself be wrong: a file that differs is then reported, not refused.
    """

    name: str
    path: str
    ref_min: float | None
    ref_max: float | None
    limit: int
    size: int = 0
    sha256: str = ""

    @property
    def file_name(self) -> str:
        return self.path.rsplit("/", 1)[-1]

    @property
    def family(self) -> str:
        """locomotion, maze2d, antmaze, adroit, kitchen, minigrid, bullet, carla or flow."""
        return _family(self.name)

    @property
    def task(self) -> str:
        """The name without data kind and version: hopper, door, umaze, eval-umaze-dense, ..."""
        return _task(self.name)

    @property
    def hash_is_certain(self) -> bool:
        return self.family != "kitchen"


_FAMILIES = {
    **dict.fromkeys(("halfcheetah", "hopper", "walker2d", "ant"), "locomotion"),
    **dict.fromkeys(("pen", "hammer", "door", "relocate"), "adroit"),
}


def _family(name: str) -> str:
    first = name.split("-")[0]
    return _FAMILIES.get(first, first)


def _task(name: str) -> str:
    first, rest = name.rsplit("-v", 1)[0].split("-", 1)
    if first == "antmaze":
        return rest.split("-")[0]
    return rest if first == "maze2d" else first


_LOCOMOTION = {
    "halfcheetah": (-280.178953, 12135.0),
    "hopper": (-20.272305, 3234.3),
    "walker2d": (1.629008, 4592.3),
    "ant": (-325.6, 3879.7),
}
_BULLET = {
    "halfcheetah": (-1275.766996, 2381.6725),
    "hopper": (20.058972, 1441.8059623430963),
    "walker2d": (16.523877, 1623.6476303317536),
    "ant": (373.705955, 2650.495),
}
_ADROIT = {
    "pen": (96.262799, 3076.8331017826877, 100),
    "hammer": (-274.856578, 12794.134825156867, 200),
    "door": (-56.512833, 2880.5693087298737, 200),
    "relocate": (-6.425911, 4233.877797728884, 200),
}
# sparse, dense, limit
_MAZE2D = {
    "umaze": ((23.85, 161.86), (68.537689, 193.66285642381482), 300),
    "medium": ((13.13, 277.39), (44.264742, 297.4552547777125), 600),
    "large": ((6.7, 273.99), (30.569041, 303.4857382709002), 800),
    **{
        f"eval-{size}": ((None, None), (None, None), n) for size, n in (("umaze", 300), ("medium", 600), ("large", 800))
    },
}
_OTHERS = {
    "maze2d-open-v0": ("maze2d/maze2d-open-sparse", 0.01, 20.66, 150),
    "maze2d-open-dense-v0": ("maze2d/maze2d-open-dense", 11.17817, 27.166538620695782, 150),
    "bullet-maze2d-open-v0": ("bullet/bullet-maze2d-open-sparse", 8.75, 64.15, 150),
    "bullet-maze2d-umaze-v0": ("bullet/bullet-maze2d-umaze-sparse", 32.46, 153.99, 300),
    "bullet-maze2d-medium-v0": ("bullet/bullet-maze2d-medium-sparse", 14.87, 238.05, 600),
    "bullet-maze2d-large-v0": ("bullet/bullet-maze2d-large-sparse", 1.82, 285.92, 800),
    "kitchen-complete-v0": ("kitchen/mini_kitchen_microwave_kettle_light_slider-v0", 0.0, 4.0, 280),
    "kitchen-partial-v0": ("kitchen/kitchen_microwave_kettle_light_slider-v0", 0.0, 4.0, 280),
    "kitchen-mixed-v0": ("kitchen/kitchen_microwave_kettle_bottomburner_light-v0", 0.0, 4.0, 280),
    "minigrid-fourrooms-v0": ("minigrid/minigrid4rooms", 0.01442, 2.89685, 50),
    "minigrid-fourrooms-random-v0": ("minigrid/minigrid4rooms_random", 0.01442, 2.89685, 50),
    "carla-lane-v0": ("carla/carla_lane_follow_flat-v0", -0.8503839912088142, 1023.5784385429523, 250),
    "carla-town-v0": ("carla/carla_town_subsamp_flat-v0", -114.81579500772153, 2440.1772022247314, 1000),
    "carla-town-full-v0": ("carla/carla_town_flat-v0", None, None, 1000),
    "flow-ring-random-v0": ("flow/flow-ring-v0-random", -165.22, 24.42, 500),
    "flow-ring-controller-v0": ("flow/flow-ring-v0-idm", -165.22, 24.42, 500),
    "flow-merge-random-v0": ("flow/flow-merge-v0-random", 118.67993, 330.03179, 750),
    "flow-merge-controller-v0": ("flow/flow-merge-v0-idm", 118.67993, 330.03179, 750),
}  # fmt: skip


def _published() -> Iterator[tuple[str, str, float | None, float | None, int]]:
    """name, path below BASE_URL without .hdf5, reference returns, limit."""
    levels = ("random", "medium", "expert", "medium_replay", "medium_expert")
    for env, (low, high) in _LOCOMOTION.items():
        for level in levels:
            # The v0 files have names of their own.
            stem = f"{env}_{level}" if level != "medium_replay" else f"{env.replace('walker2d', 'walker')}_mixed"
            yield f"{env}-{level}-v0".replace("_", "-"), f"gym_mujoco/{stem}", low, high, 1000
        for version in ("v1", "v2"):
            for level in (*levels, "full_replay"):
                name = f"{env}-{level}-{version}".replace("_", "-")
                yield name, f"gym_mujoco_{version}/{env}_{level}-{version}", low, high, 1000
    yield "ant-random-expert-v0", "gym_mujoco/ant_random_expert", None, None, 1000
    for env, (low, high) in _BULLET.items():
        for level in levels:
            yield f"bullet-{env}-{level}-v0".replace("_", "-"), f"bullet/bullet-{env}_{level}", low, high, 1000
    for task, (low, high, limit) in _ADROIT.items():
        for kind, old in (
            ("human", "-v0_demos_clipped"),
            ("cloned", "-demos-v0-bc-combined"),
            ("expert", "-v0_expert_clipped"),
        ):
            yield f"{task}-{kind}-v0", f"hand_dapg/{task}{old}", low, high, limit
            yield f"{task}-{kind}-v1", f"hand_dapg_v1/{task}-{kind}-v1", low, high, limit
    for maze, (sparse, dense, limit) in _MAZE2D.items():
        yield f"maze2d-{maze}-v1", f"maze2d/maze2d-{maze}-sparse-v1", *sparse, limit
        yield f"maze2d-{maze}-dense-v1", f"maze2d/maze2d-{maze}-dense-v1", *dense, limit
    for maze, file, limit in (("umaze", "u-maze", 700), ("medium", "big-maze", 1000), ("large", "hardest-maze", 1000)):
        kinds = {"umaze": (("umaze", False, False), ("umaze-diverse", True, True))}.get(
            maze, ((f"{maze}-play", True, False), (f"{maze}-diverse", True, True))
        )
        for name, starts, goals in kinds:
            stem = f"Ant_maze_{file}_noisy_multistart_{starts}_multigoal_{goals}_sparse"
            yield f"antmaze-{name}-v0", f"ant_maze_new/{stem}", 0.0, 1.0, limit
            yield f"antmaze-{name}-v2", f"ant_maze_v2/{stem}_fixed", 0.0, 1.0, limit
    for name, values in _OTHERS.items():
        yield name, *values


# file -> bytes, SHA-256
_FILES = """
Ant_maze_big-maze_noisy_multistart_True_multigoal_True_sparse_fixed.hdf5 231095166 ad9dcbac05d1f8744a7a216083f513662f43f64f28a4a5eb225e9811902dfae7
Ant_maze_hardest-maze_noisy_multistart_True_multigoal_False_sparse_fixed.hdf5 230880653 6d353df2457829925d7f9d4b0215587469908bd57478ea76f16417cfa944f471
Ant_maze_hardest-maze_noisy_multistart_True_multigoal_True_sparse_fixed.hdf5 231183710 84f775eb7956ea9cc766704710dc520a8ab357adc7522ade47f556f0e335e284
Ant_maze_u-maze_noisy_multistart_False_multigoal_False_sparse_fixed.hdf5 232532949 5ef15257771c50ef4d23c7de001750e96c8bb5d9b6a5e4a821dcfb3065fbd130
Ant_maze_u-maze_noisy_multistart_True_multigoal_True_sparse_fixed.hdf5 230854272 c771dd63963cd7d9f55f24a6d809064f6b82250a6aeac4c9d13f9a1d06e8c932
ant_expert-v2.hdf5 373231677 fa22531ca79ea051006fa48bb652120d2e12c813919c530369a03c2688311b0f
ant_full_replay-v2.hdf5 449390167 b95b0a7f34b1d5d1bedfded0f8e9cfc508b59de83cd4cbfb65b18dbd5056f26c
ant_medium-v2.hdf5 376239825 461c03b9f70f40d66b47608a92965e4ef3642bd9cdb1320d10acc92754167137
ant_medium_expert-v2.hdf5 748335217 8cfb64e62d8944b5d9dada5f0cfc13a295fafe0c6ba58b778e32ebf16c95aef1
ant_medium_replay-v2.hdf5 136482252 844c4e5743ef51091f2106a3570b257fb149032c4743f8a5f02f40adc3b42a46
ant_random-v2.hdf5 384466831 93cc10893eed2b8e17f81d1aa51dc23d27c5ca101a3804249f6bd038c6f06055
door-cloned-v1.hdf5 294356136 1f6a60ecc4d2a2e5c02f41dd3412be61bb265a33dcf120ceee9e9682d4fe4d48
door-expert-v1.hdf5 536056678 66df4cd4e0a1e0b72ea72653ce088e29ecbfa99bac3cd2b52e64092e9a0aaab4
door-human-v1.hdf5 3121206 f9691288c3ddf2b4e7b31bdae0d8444b80ba035515495f8a902d60c43ee09370
halfcheetah_expert-v2.hdf5 237464597 d9fe53bb994eb1e20a99b4fa3412cd76a1bb7966a7ff55e0fcbdd6081bd2965f
halfcheetah_full_replay-v2.hdf5 291381762 27fdf7ea86e5a2cbd24d611ae9e703c86ec2e8e52823abc69dd9af6afb3a36c0
halfcheetah_medium-v2.hdf5 237727262 41324e8487a9556d8cfa4538827f8937f4d63dae3030825ebc9f3a726ed08ca0
halfcheetah_medium_expert-v2.hdf5 474567252 015db75dae5bbe8e94029b71fa0bafc2073365df0c94744e71031189f3f79c06
halfcheetah_medium_replay-v2.hdf5 59448533 48d494a4770c11f48260736dec090b78bdca8375647ed4d24bfa5b6610c7f683
halfcheetah_random-v2.hdf5 237338037 25407aef85b5d16c0f36b4149341edb4acc6a9e88c1db529b2de19e7464874ba
hammer-cloned-v1.hdf5 446616879 e48d75b159bdd72f51d3f01448d3eca4d38275714e11e995c14a36f6cf159db3
hammer-expert-v1.hdf5 557047483 1c069a0f6e4852493023c77dc3b3a12d8d5ac2e3a034827fea3ab8a161e7185f
hammer-human-v1.hdf5 5606475 3e42f3f49b5c92a901601dfe867c6c62a9651cbe79f6760ec8b402a15816a498
hopper_expert-v2.hdf5 152427435 01aa219a5f8eea5e639eccdc636ec2bf40e317159a95cf4bf6e985f16909941b
hopper_full_replay-v2.hdf5 187998921 56baf95963c51c1e964049a974566c50ba80f289390565523e60c0ba83e0982e
hopper_medium-v2.hdf5 152756557 5bdf1bc4a713c82941de44633df669b36c89850b652a25985166796d25cf71a0
hopper_medium_expert-v2.hdf5 304537315 9d51ad87f8c905be3880d84c6140bcdb7fbf39a19e046a237f238ba34fec9e26
hopper_medium_replay-v2.hdf5 75854457 e121c5f7c9857a307baa9edc6a2c3b48e85fedb9ac316ecddd0f48ca7ef4e39b
hopper_random-v2.hdf5 152525345 63103ef7059db4c0819bd054f4e83ff339030b50bcdb46bdbe50385f234b5054
kitchen_microwave_kettle_bottomburner_light-v0.hdf5 19560760 a30382a50278fdaea2e2d88e5f2836a95bcf9b581d252617872fd6537302721b
kitchen_microwave_kettle_light_slider-v0.hdf5 19558459 57bfd9c5fe88a7cf702bbaf8b7cd800d30cd869e7f73416007238d26cd859800
mini_kitchen_microwave_kettle_light_slider-v0.hdf5 556544 cd797c38cd52dfbe3f960cef73935cc724847abd189e47a703a7a2315ed60a81
pen-cloned-v1.hdf5 155074191 6d1a982cee1950501bedebbddedbcbb377e6284d379986c83abac8a6c0be0c22
pen-expert-v1.hdf5 262040663 3791b8ca6a802061770af2977c051ac3ae261488210ce73788760a5b8308f374
pen-human-v1.hdf5 2040573 209e345b2150b633f30a11612612c60f49e941f127ce6c4dc0cd790501c46f9f
walker2d_expert-v2.hdf5 230567195 2985dc3d436a8baa10e8f43f946fe1d7c6337a4e4fbc65def70618093b18c59a
walker2d_full_replay-v2.hdf5 285115514 f2720f9d27b2acef6ec9a7d9ad3b80b6c2078ad4467cee668a81e3b3c80bcf2a
walker2d_medium-v2.hdf5 232254996 cf00f43add04c17fdfc2958dd581dea0851b2e5bedbe6fda073758a8f841aeda
walker2d_medium_expert-v2.hdf5 462197079 6b8d7f868c45bbaedf460be797fb7271b46dee6ebe45fe7a64319f2005b59a04
walker2d_medium_replay-v2.hdf5 86323963 e75de96a4f77acf7d4e0d6fdf0d7ccb177c26c44bb4388e4fd99f543ccfa18db
walker2d_random-v2.hdf5 216109364 4e863bb6090cf4a461548bd470564b32f1ae5b32ef3085f816b2ede7f092e7fa
"""  # noqa: E501
_KNOWN = {name: (int(size), digest) for name, size, digest in (line.split() for line in _FILES.split("\n") if line)}

ENTRIES: dict[str, Entry] = {
    name: Entry(name, f"{path}.hdf5", low, high, limit, *_KNOWN.get(f"{path.rsplit('/', 1)[-1]}.hdf5", ()))
    for name, path, low, high, limit in sorted(_published())
}
BY_FILE: dict[str, Entry] = {entry.file_name: entry for entry in ENTRIES.values()}


@dataclass(frozen=True)
class Defect:
    """A known error of the published files that match `names`; `issue` names the thread, D4RL's own unless it says so.

    `told` ones are said at every load, because they change what the data means and nothing here mends them.
    """

    names: str
    issue: str
    text: str
    told: bool = False

    def __str__(self) -> str:
        return f"{self.text} ({'D4RL ' if self.issue.startswith('#') else ''}{self.issue})" if self.issue else self.text


DEFECTS = (
    Defect(
        r"antmaze-(umaze-diverse|medium-.*|large-.*)-v0",
        "#77",
        "timeouts are out of step with the true ends of the walks, so some transitions jump through the maze; the v2 "
        "files are the repaired ones. Loaded as published; the number of jumps is counted and told",
        told=True,
    ),
    Defect(
        r"antmaze-umaze-diverse-v[02]",
        "#199",
        "only one row of each success has reward and terminal 1, in the other antmaze sets every row near the goal "
        "has. Loaded as published: the goals needed to relabel are not certain",
        told=True,
    ),
    Defect(
        r"antmaze-.*-v[02]",
        "HIQL #2",
        "rows of reward 1 are terminal but the walk goes on: many episodes of one step. Loaded as published",
    ),
    Defect(
        r"hopper-medium-expert-v0",
        "#19",
        "built from the replay data instead of the medium data: 1,200,919 rows. Scores on it are not "
        "medium-expert scores; use v2",
        told=True,
    ),
    Defect(
        r"hopper-(medium|expert)-v1",
        "#76",
        "the two files were interchanged on the server until January 2021. A download from before that is recognised "
        "by its rewards and refused",
    ),
    Defect(
        r"hopper-(medium-replay|full-replay)-v1",
        "#86",
        "the replay data scores higher than medium and expert data of the same version. Loaded as published; use v2",
        told=True,
    ),
    Defect(
        r".*-(medium-replay|full-replay)-v[012]",
        "#162",
        "time-outs are not always marked where they should be, some episodes are cut short. Loaded as published: a cut "
        "is truncation, never termination",
    ),
    Defect(
        r"maze2d-.*",
        "#85, #176",
        "one endless walk without resets: timeouts mark where the collector's goal changed, not a time limit. "
        "The default drops these rows as D4RL does; +full keeps them, for their next row is their true successor",
    ),
    Defect(
        r"maze2d-.*",
        "#194",
        "the reward of row t belongs to observation t, the environment pays for observation t+1. The default keeps the "
        "published rewards; +full pays for observation t+1, after checking that the file is as described",
    ),
    Defect(
        r"maze2d-.*",
        "#159",
        "the reference returns come from a controller with an error; scores above 100 are normal",
    ),
    Defect(
        r"maze2d-open-.*v0",
        "",
        "the reference returns do not fit the environment: a random policy gets 8.3 +- 1.7 (sparse) and 40.4 +- 2.4 "
        "(dense) in the maze as D4RL's source describes it, the references say 0.01 and 11.2 (measured here)",
        told=True,
    ),
    Defect(
        r"(door|hammer|pen|relocate)-human-v0",
        "",
        "v0 holds other episodes than v1 (door: 50 against 25); scores of the two versions do not compare",
    ),
    Defect(
        r"(halfcheetah|hopper|walker2d|ant)-.*-v[012]",
        "#45, #115, #116",
        "collected in Gym's MuJoCo v2 environments, evaluated here in Gymnasium's v4, the closest that still runs; "
        "the difference has not been measured",
    ),
    Defect(
        r".*",
        "#145, #204",
        "qlearning_dataset drops the last transition of truncated episodes and, on terminal rows, gives the next "
        "episode's first observation. The default does the same (terminated masks it); +full repairs both where the "
        "file has next_observations",
    ),
)  # fmt: skip


def defects(name: str) -> list[Defect]:
    """The known defects of a published set, the general ones last."""
    return [defect for defect in DEFECTS if re.fullmatch(defect.names, name)]
