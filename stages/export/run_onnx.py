"""Labels of videos by an exported network: python run_onnx.py MODEL.onnx VIDEO...   Needs onnxruntime, numpy, Pillow, av."""

import json
import sys

import av
import numpy as np
from PIL import Image


def frames_of(path):
    kinds = {"format_whitelist": "mov,mp4,matroska,webm,avi,mpegts,mpeg,flv,ogg,asf,gif"}  # no playlists of other files
    with open(path, "rb") as file, av.open(file, metadata_errors="ignore", options=kinds) as video:
        stream = video.streams.best("video")
        if stream is None or stream.codec_context is None:
            raise ValueError("it has no video that can be decoded")
        stream.codec_context.flags |= av.codec.context.Flags.unaligned  # crops on the left are not rounded
        for frame in video.decode(stream):
            if frame.is_corrupt:
                raise ValueError("a frame is damaged")
            yield frame


def times(n, clip, *, sampling, num_frames, stride, clips, **others):
    """The numbers of the frames that clip number `clip` has of a video of n frames."""
    if sampling == "segments":
        shift = (clips + 2 * clip) % (2 * clips)
        return [(2 * clips * i + shift) * n // (2 * clips * num_frames) for i in range(num_frames)]
    start, free = (2 * clip + 1) * max(1, n - num_frames * stride + 1) // (2 * clips), n - (num_frames - 1) * stride - 1
    if sampling == "dense_1x":
        start = max(0, free) // 2 if clips == 1 else round(clip * (max(0, free) / (clips - 1)))
    return [(start + i * stride) % n for i in range(num_frames)]


def render(frame, place, size, via, *, crop, center_fraction, **others):
    """uint8 [3,size,size], upright RGB: the crop at `place`, from 0 (left, top) to 1 (right, bottom)."""
    matrix = frame.side_data.get("DISPLAYMATRIX") or np.int32([1, 0, 0, 0, 1]).tobytes()
    a, b, _, c, d = np.frombuffer(matrix, np.int32)[:5].tolist()
    image = frame.to_ndarray(format="rgb24")
    image, x, y = (image.transpose(1, 0, 2), c, b) if abs(b) > abs(a) else (image, a, d)
    image = Image.fromarray(np.ascontiguousarray(image[:: -1 if y < 0 else 1, :: -1 if x < 0 else 1]))
    aspect, side, first = image.width / image.height, center_fraction if crop == "center" else 1, via or size
    h, w = (1, 1) if crop == "full" else (side * min(1, aspect), side * min(1, 1 / aspect))
    h, w, top, left = (round(part * 2**24) / 2**24 for part in (h, w, (1 - h) * place, (1 - w) * place))
    box = np.minimum([left, top, left + w, top + h], 1) * (image.size * 2)
    image = image.resize((first, first), Image.Resampling.BILINEAR, tuple(box))
    centres = ((np.arange(size, dtype=np.float32) + 0.5) * np.float32(first / size) - 0.5).clip(0, first - 1)
    weights = np.maximum(0, 1 - abs(centres[:, None] - np.arange(first, dtype=np.float32)))  # without antialiasing
    return np.rint(weights @ np.float32(image).transpose(2, 0, 1) @ weights.T).astype(np.uint8)


if __name__ == "__main__":
    if len(sys.argv) < 3:
        sys.exit(__doc__)
    import onnxruntime  # here, so that this program may import the file without it

    session, failed = onnxruntime.InferenceSession(sys.argv[1], providers=["CPUExecutionProvider"]), False
    about = session.get_modelmeta().custom_metadata_map
    labels, size, via, policy = (json.loads(about[key]) for key in ("labels", "size", "render_via", "eval_policy"))
    places = (0, 1, 0.5) if policy["crop"] == "three_crop" else (0.5,)
    for path in sys.argv[2:]:
        try:
            count = sum(1 for _ in frames_of(path))
            clips = [times(count, clip, **policy) for clip in range(policy["clips"])]
            seen = {i: [render(frame, place, size, via, **policy) for place in places]
                    for i, frame in enumerate(frames_of(path)) if i in np.array(clips)}  # fmt: skip
            views = [np.stack([seen[i][p] for i in clip])[None] for clip in clips for p in range(len(places))]
            scores = np.mean([session.run(["probabilities"], {"frames": view})[0][0] for view in views], 0)
            line, output = f"{path}: {labels[scores.argmax()]} {scores.max():.4f}", sys.stdout
        except Exception as error:  # the other videos get their labels
            line, output, failed = f"{path} can't be read: {error}", sys.stderr, True
        print("".join(char if char.isprintable() else "?" for char in line), file=output)  # no orders to the terminal
    if failed:
        sys.exit(1)
