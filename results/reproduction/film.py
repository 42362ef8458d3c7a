"""Films the policy of cube-single: python results/reproduction/film.py

Three episodes, every second step, from nearer than the environment's own camera, and lighter.
Needs a renderer, as tools/rollout.py's videos do: MUJOCO_GL=egl or osmesa.
"""

import sys
from pathlib import Path

import mujoco
import numpy as np
from PIL import Image

FOLDER = Path(__file__).resolve().parent
sys.path.append(str(FOLDER.parents[1]))  # where drol.py is
import drol  # noqa: E402

EPISODES, SIZE, PALETTE = 3, 320, 64


def main():
    env = drol.make_env("cube-single-play-singletask-task2-v0")
    policy = drol.load_policy(FOLDER / "cube-single-drol-k16.pt", seed=0)
    env.reset(seed=0)
    model, data = env.unwrapped.model, env.unwrapped.data
    model.vis.global_.offwidth = model.vis.global_.offheight = SIZE
    floor = model.geom("floor")
    floor.matid, floor.rgba[:] = -1, (0.8, 0.8, 0.8, 1)  # white once lit
    model.vis.headlight.ambient[:] = 0.4
    model.light_castshadow[:] = False
    camera = mujoco.MjvCamera()
    camera.lookat[:], camera.distance, camera.azimuth, camera.elevation = (
        (0.4, 0, 0.1),
        0.85,
        140,
        -52,
    )
    renderer, frames = mujoco.Renderer(model, SIZE, SIZE), []
    for episode in range(EPISODES):
        seed = drol.make_generator("cpu", 0, episode).initial_seed()
        observation, _ = env.reset(seed=seed)
        over, steps, info = False, 0, {}
        while not over:
            if steps % 2 == 0:
                renderer.update_scene(data, camera)
                frames.append(renderer.render())
            observation, _, terminated, truncated, info = env.step(policy(observation))
            over, steps = terminated or truncated, steps + 1
        print(f"episode {episode}: score {info['score']:.0f}, {steps} steps")
        frames += [frames[-1]] * 8
    palette = Image.fromarray(np.concatenate(frames[:: len(frames) // 6])).quantize(
        PALETTE, Image.Quantize.MAXCOVERAGE
    )
    images = [
        Image.fromarray(x).quantize(palette=palette, dither=Image.Dither.NONE) for x in frames
    ]
    images[0].save(
        FOLDER / "cube-single-drol-k16.gif",
        save_all=True,
        append_images=images[1:],
        duration=80,
        loop=0,
    )
    renderer.close()


if __name__ == "__main__":
    main()
