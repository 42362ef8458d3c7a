"""Films three episodes of cube-single: python -m results.reproduction.film

Every second step, from nearer than the environment's own camera, and lighter. Needs a renderer, as
the videos of tools/rollout.py do: MUJOCO_GL=egl or osmesa.
"""

from pathlib import Path

import mujoco
from PIL import Image

import drol

FOLDER = Path(__file__).resolve().parent
EPISODES, SIZE, PALETTE = 3, 320, 64


def make_renderer(model):
    """A renderer and its camera."""
    model.vis.global_.offwidth = model.vis.global_.offheight = SIZE
    model.geom("floor").matid, model.geom("floor").rgba[:] = -1, (0.8, 0.8, 0.8, 1)
    model.vis.headlight.ambient[:] = 0.4
    model.light_castshadow[:] = False
    camera = mujoco.MjvCamera()
    camera.lookat[:], camera.distance = (0.4, 0, 0.1), 0.85
    camera.azimuth, camera.elevation = 140, -52
    return mujoco.Renderer(model, SIZE, SIZE), camera


def main():
    env = drol.make_env("cube-single-play-singletask-task2-v0")
    policy = drol.load_policy(FOLDER / "cube-single-drol-k16.pt", seed=0)
    env.reset(seed=0)
    renderer, camera = make_renderer(env.unwrapped.model)
    frames = []
    for episode in range(EPISODES):
        observation, _ = env.reset(seed=drol.make_seed(0, episode))
        over, steps = False, 0
        while not over:
            if steps % 2 == 0:
                renderer.update_scene(env.unwrapped.data, camera)
                frames.append(Image.fromarray(renderer.render()))
            observation, _, terminated, truncated, info = env.step(policy(observation))
            over, steps = terminated or truncated, steps + 1
        print(f"episode {episode}: score {info['score']:.0f}, {steps} steps")
        frames += [frames[-1]] * 8
    renderer.close()
    palette = frames[0].quantize(PALETTE, Image.Quantize.MAXCOVERAGE)
    images = [x.quantize(palette=palette, dither=Image.Dither.NONE) for x in frames]
    path = FOLDER / "cube-single-drol-k16.gif"
    images[0].save(path, save_all=True, append_images=images[1:], duration=80, loop=0)


if __name__ == "__main__":
    main()
