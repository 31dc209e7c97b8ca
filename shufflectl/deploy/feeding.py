"""Finds out that a file computes the right thing of images that are fed in another way.

A file that was converted for BGR, without normalisation, or for the other layout runs without any error and
gives wrong outputs from its first layer on. So a file that disagrees with its reference is fed the images in
the other usual ways, while the reference has them in its own: where the outputs then agree, that way is the
cause.
"""

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from shufflectl.converters.trace import NHWC
from shufflectl.deploy.labelled import Fit
from shufflectl.deploy.mistakes import Feed, alternatives
from shufflectl.deploy.parity.feeds import Feeds
from shufflectl.deploy.parity.limits import Limits
from shufflectl.deploy.parity.metrics import compare
from shufflectl.deploy.parity.nway import Member, Outputs
from shufflectl.deploy.parity.ports import Ports
from shufflectl.deploy.runtimes.base import Session
from shufflectl.errors import InputError

__all__ = ["other_feed"]

_COLOURS = 3


def other_feed(
    session: Session,
    file: str,
    feeds: Feeds,
    expected: Outputs,
    limits: Limits,
    *,
    inputs: tuple[str, ...] | None = None,
    outputs: tuple[str, ...] | None = None,
) -> str:
    """Return how a file must be fed to agree, as the end of a sentence; empty where no usual way does.

    Args:
        session: The loaded file.
        file: Its name.
        feeds: Images with their pixels, one input.
        expected: What the reference makes of them.
        limits: What counts as agreement.
        inputs: The graph's input names, where the file's order may differ from the graph's.
        outputs: The graph's output names, likewise.
    """
    if len(feeds.arrays) != 1 or set(feeds.pixels) != set(feeds.arrays) or feeds.preprocess is None:
        return ""
    ports = Ports(session, file, inputs, outputs)
    name, spec, _ = ports.inputs[0]
    own = Feed(ports.expects(spec) or feeds.preprocess, "auto")
    member = Member.from_session(file, "", session, inputs=inputs, outputs=outputs)
    pixels: Mapping[Fit, NDArray[np.uint8]] = {"auto": feeds.pixels[name]}
    for feed in alternatives(own, pixels, takes_bytes=ports.takes_bytes):
        images = feed.prepare(pixels)
        if feeds.arrays[name].shape[1] != _COLOURS:
            images = np.ascontiguousarray(images.transpose(NHWC))
        try:
            found = member.run(Feeds({name: images}))
        except InputError:
            continue  # a file that does not take them is fed in another way
        if len(found) == len(expected) and all(
            a.shape == b.shape and compare(a, b, limits).passed for a, b in zip(expected, found, strict=True)
        ):
            instead = feed.instead_of(own)
            return f"agrees when it is fed {feed.text(own)}" + (f" instead of {instead}" if instead else "")
    return ""
