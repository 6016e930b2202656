"""Labels of videos by an exported network: python run_onnx.py MODEL.onnx VIDEO...   Needs onnxruntime, numpy, Pillow, av."""

import json
import sys

import av
import numpy as np
from PIL import Image


def decode(path, wanted=()):
    """The number of pictures that a video shows; the wanted ones, number -> uint8 [H,W,3], upright RGB."""
    count, found = 0, {}
    with av.open(path, metadata_errors="ignore") as video:
        stream = video.streams.best("video")
        stream.codec_context.flags |= av.codec.context.Flags.unaligned  # crops on the left are not rounded
        for count, frame in enumerate(video.decode(stream), 1):
            if count - 1 in wanted:
                matrix = frame.side_data.get("DISPLAYMATRIX") or np.int32([1, 0, 0, 0, 1]).tobytes()
                a, b, _, c, d = np.frombuffer(matrix, np.int32)[:5].tolist()
                picture = frame.to_ndarray(format="rgb24")
                picture, x, y = (picture.transpose(1, 0, 2), c, b) if abs(b) > abs(a) else (picture, a, d)
                found[count - 1] = np.ascontiguousarray(picture[:: -1 if y < 0 else 1, :: -1 if x < 0 else 1])
    return count, found


def times(policy, n, clip):
    """The numbers of the pictures that clip number `clip` has of a video of n pictures."""
    count, stride, clips = policy["num_frames"], policy["stride"], policy["clips"]
    if policy["sampling"] == "segments":
        return [(2 * clips * i + (clips + 2 * clip) % (2 * clips)) * n // (2 * clips * count) for i in range(count)]
    start, free = (2 * clip + 1) * max(1, n - count * stride + 1) // (2 * clips), max(0, n - (count - 1) * stride - 1)
    if policy["sampling"] == "dense_1x":
        start = free // 2 if clips == 1 else round(clip * (free / (clips - 1)))
    return [(start + i * stride) % n for i in range(count)]


def render(pictures, policy, place, size, via):
    """uint8 [T,3,size,size]: the crop at `place`, from 0 (left, top) to 1 (right, bottom), of the pictures."""
    height, width = pictures[0].shape[:2]
    side = policy["center_fraction"] if policy["crop"] == "center" else 1
    h, w = (1, 1) if policy["crop"] == "full" else (side * min(1, width / height), side * min(1, height / width))
    h, w, top, left = (round(part * 2**24) / 2**24 for part in (h, w, (1 - h) * place, (1 - w) * place))
    box = left * width, top * height, min((left + w) * width, width), min((top + h) * height, height)
    first = (via or size,) * 2
    pixels = np.stack([np.asarray(Image.fromarray(p).resize(first, Image.Resampling.BILINEAR, box)) for p in pictures])
    if via:  # then plain bilinear interpolation to `size`, without antialiasing
        centres = ((np.arange(size, dtype=np.float32) + 0.5) * np.float32(via / size) - 0.5).clip(0, via - 1)
        weights = np.maximum(0, 1 - abs(centres[:, None] - np.arange(via, dtype=np.float32)))
        rows = np.einsum("xw,thwc->thxc", weights, pixels.astype(np.float32))
        pixels = np.rint(np.einsum("yh,thxc->tyxc", weights, rows)).astype(np.uint8)
    return np.ascontiguousarray(pixels.transpose(0, 3, 1, 2))


if __name__ == "__main__":
    import onnxruntime  # here, so that this program may import the file without it

    session = onnxruntime.InferenceSession(sys.argv[1], providers=["CPUExecutionProvider"])
    about = session.get_modelmeta().custom_metadata_map
    labels, size, via, policy = (json.loads(about[key]) for key in ("labels", "size", "render_via", "eval_policy"))
    for path in sys.argv[2:]:
        count, scores = decode(path)[0], []
        for numbers in [times(policy, count, clip) for clip in range(policy["clips"])]:
            pictures = decode(path, numbers)[1]
            for place in (0, 1, 0.5) if policy["crop"] == "three_crop" else (0.5,):
                frames = render([pictures[number] for number in numbers], policy, place, size, via)
                scores.append(session.run(["probabilities"], {"frames": frames[None]})[0][0])
        best = int(np.mean(scores, 0).argmax())
        line = f"{path}: {labels[best]} {np.mean(scores, 0)[best]:.4f}"
        print("".join(char if char.isprintable() else "?" for char in line))  # no orders to the terminal
