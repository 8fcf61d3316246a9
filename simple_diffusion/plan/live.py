"""Counting the bytes that tensors hold at any moment of a program that is only acted out."""

import weakref
from array import array
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, Literal, get_args

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

Part = Literal[
    "weights", "gradients", "optimiser", "averages", "checkpoint", "batch", "activations"
]
PARTS: tuple[Part, ...] = get_args(Part)
Parts = dict[Part, int]


class LiveMemory(TorchDispatchMode):
    """While entered, tensors have shapes but no content, and their storages are counted.

    Operations run as fake ones, through autograd and autocast as real ones do, so that a storage
    is made and freed when the real program would make and free it: temporaries, what autograd
    saves, and weights that autocast has cast. Storages belong to `activations` until claimed.
    A number that is read from a tensor without content is 0.

    Attributes:
        trace: what was allocated (number of the storage, bytes) and freed (number, -bytes), in
            order, flattened.
        moments: bytes of each part of PARTS when something had been allocated since
            `forget_peak`, in order, flattened.
    """

    def __init__(self) -> None:
        super().__init__()
        self._fake = FakeTensorMode()
        self._faking = True
        self.trace: array[int] = array("q")
        self.moments: array[int] = array("q")
        self._storages = 0
        self._parts: dict[int, Part] = {}
        self._references: dict[int, weakref.ref[torch.UntypedStorage]] = {}
        self._live: Parts = dict.fromkeys(PARTS, 0)
        self._total = self._peak_total = 0
        self._peak = dict(self._live)

    @property
    def live(self) -> Parts:
        """Bytes alive now, by part."""
        return dict(self._live)

    @property
    def peak(self) -> Parts:
        """Bytes of each part at the moment when their sum was largest."""
        return dict(self._peak)

    def forget_peak(self) -> None:
        """Start the search for the largest moment afresh."""
        self.moments = array("q", self._live.values())
        self._keep_peak()

    def _keep_peak(self) -> None:
        self._peak_total, self._peak = self._total, dict(self._live)

    def claim(self, part: Part, tensors: Iterable[Tensor | None]) -> None:
        """Count the storages of these tensors under another part from now on."""
        for tensor in tensors:
            if tensor is not None and tensor.numel():
                storage = tensor.untyped_storage()
                self._live[self._parts[id(storage)]] -= storage.nbytes()
                self._live[part] += storage.nbytes()
                self._parts[id(storage)] = part

    @contextmanager
    def faking(self, on: bool) -> Iterator[None]:
        """Whether new tensors are without content inside; operations on such ones always are.

        Switched off for code that computes with a few small tensors and needs their values.
        """
        before, self._faking = self._faking, on
        try:
            yield
        finally:
            self._faking = before

    def __torch_dispatch__(
        self,
        func: Callable[..., Any],
        types: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        if func is torch.ops.aten._local_scalar_dense.default and isinstance(args[0], FakeTensor):
            return 0.0 if args[0].is_floating_point() else 0
        if self._faking:
            with self._fake:
                result = func(*args, **kwargs)
        else:
            result = func(*args, **kwargs)
        for leaf in tree_leaves(result):
            if isinstance(leaf, Tensor):
                self._count(leaf.untyped_storage())
        if self._total > self._peak_total:
            self._keep_peak()
        return result

    def _count(self, storage: torch.UntypedStorage) -> None:
        key, size = id(storage), storage.nbytes()
        if key in self._parts or not size:
            return
        self._storages += 1
        number = self._storages

        def gone(_: object) -> None:
            self.trace.extend((number, -size))
            self._live[self._parts.pop(key)] -= size
            self._total -= size
            del self._references[key]

        self.trace.extend((number, size))
        self._parts[key] = "activations"
        self._references[key] = weakref.ref(storage, gone)
        self._live["activations"] += size
        self._total += size
        self.moments.extend(self._live.values())
