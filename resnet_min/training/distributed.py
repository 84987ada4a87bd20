"""Several processes that train one network, as torchrun starts them.

A `World` says who is which and passes figures between them. In a world of one, which is what `python train.py` has,
all of it is the identity, so that nothing else asks how many there are.
"""

import contextlib
import os
import re
import signal
import socket
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import EXIT_CODES, UserError
from ..kernels.sync_bn import SyncBatchNorm

Result = TypeVar("Result")

PATIENCE = timedelta(minutes=30)  # with a process that is there and does not answer; one that is gone shows at once


class World:
    """The processes that work together, and which of them this is: here a world of one."""

    rank, size, local_rank = 0, 1, 0  # local: among the processes of this machine

    @property
    def first(self) -> bool:
        """Whether this is the process that writes and prints."""
        return self.rank == 0

    @property
    def part(self) -> tuple[int, int]:
        """What `data.batches.share` takes: which part this process has, of how many."""
        return self.rank, self.size

    def gather(self, figures: Tensor) -> Tensor:
        """[…] of each process, of one shape -> [size, …], in rank order."""
        return figures[None]

    def gathered(self, parts: list[Tensor]) -> list[Tensor]:
        """Every process' list, of any length, one behind the other in rank order."""
        return parts

    def any(self, flag: bool) -> bool:
        """Whether the flag is set in any process."""
        return flag

    def shared(self, make: Callable[[], Result]) -> Result:
        """What `make` gives in the first process, which alone calls it."""
        return make()

    def in_turn(self, make: Callable[[], Result]) -> Result:
        """`make()`, by one process of a machine before its others: they find what it left on the disk."""
        return make()

    def reduce(self, loss: Tensor, figures: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """From a shard's mean loss and the figures of its images [b], b >= 0, to those of the whole batch.

        Returns (what to differentiate: its gradients' mean over the processes is the batch's gradient; the batch's mean
        loss; the sum of its figures; its images).
        """
        return loss, loss.detach(), figures.sum(), torch.tensor(len(figures))

    def parallel(self, net: nn.Module, sync_bn: bool) -> nn.Module:
        """`net` as it is trained, with the parameters that require grad now: of several processes, alike in all.

        sync_bn: normalise by the whole batch, not by a process' shard of it.
        """
        return net

    def settle(self, net: nn.Module) -> None:
        """Give all processes the running statistics of the first, which differ where each normalises by its shard."""

    def __str__(self) -> str:
        return ""


class Several(World):
    """A world of more than one, by torch.distributed."""

    def __init__(self, rank: int, size: int, local_rank: int) -> None:
        self.rank, self.size, self.local_rank = rank, size, local_rank

    def gather(self, figures: Tensor) -> Tensor:
        # Not all_gather, which goes round in a ring: for the few figures of a batch norm that takes gloo twice as long.
        mine = figures.expand(self.size, *figures.shape).contiguous()
        parts = torch.empty_like(mine)
        dist.all_to_all_single(parts, mine)
        return parts

    def gathered(self, parts: list[Tensor]) -> list[Tensor]:
        lists: list[Any] = [None] * self.size
        dist.all_gather_object(lists, [part.cpu() for part in parts])
        device = parts[0].device if parts else "cpu"
        return [part.to(device) for one in lists for part in one]

    def any(self, flag: bool) -> bool:
        return bool(self.gather(torch.tensor(flag)).any())

    def shared(self, make: Callable[[], Result]) -> Result:
        box = [make() if self.first else None]
        dist.broadcast_object_list(box)
        return box[0]

    def in_turn(self, make: Callable[[], Result]) -> Result:
        result = make() if self.local_rank == 0 else None
        self.gathered([])
        return result if self.local_rank == 0 else make()

    def reduce(self, loss: Tensor, figures: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        images = len(figures)
        mine = torch.zeros(3, dtype=torch.float64, device=loss.device)
        if images:  # the mean of nothing is NaN
            mine[0], mine[1], mine[2] = loss.detach().double() * images, figures.sum(), images
        losses, total, count = self.gather(mine).sum(0)
        return loss * (images * self.size / count), losses / count, total, count

    def parallel(self, net: nn.Module, sync_bn: bool) -> nn.Module:
        device = next(net.parameters()).device
        for parent in list(net.modules()):
            for name, child in parent.named_children():
                if type(child) is nn.Dropout:
                    setattr(parent, name, Dropout(child.p, self))
                if type(child) is nn.BatchNorm2d and sync_bn and device.type == "cpu":
                    setattr(parent, name, SyncBatchNorm(child, self.gather))
        if sync_bn and device.type == "cuda":
            net = nn.SyncBatchNorm.convert_sync_batchnorm(net)
        with warnings.catch_warnings():  # from torch 2.14 on, that the last argument has a new name
            warnings.simplefilter("ignore", FutureWarning)
            wrapped = nn.parallel.DistributedDataParallel(
                net, device_ids=[device] if device.type == "cuda" else None, broadcast_buffers=False
            )
        if self.size > 2 and device.type == "cpu":
            wrapped.register_comm_hook(self, mean_in_rank_order)
        return wrapped

    def settle(self, net: nn.Module) -> None:
        for buffer in net.buffers():
            dist.broadcast(buffer, 0)

    def __str__(self) -> str:
        return f", {self.size} processes"


class Dropout(nn.Dropout):
    """A shard's part of what dropout would be of the whole batch: every process draws all of it, from one state."""

    def __init__(self, p: float, world: World) -> None:
        super().__init__(p)
        self.world = world

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or self.p == 0:
            return x
        counts = self.world.gather(torch.tensor(len(x), device=x.device)).tolist()
        first = sum(counts[: self.world.rank])
        return x * F.dropout(x.new_ones(sum(counts), *x.shape[1:]), self.p)[first : first + len(x)]


def mean_in_rank_order(world: World, bucket: dist.GradBucket) -> torch.futures.Future[Tensor]:
    """The mean of a bucket of gradients, added up in rank order: the same bits however gradients share out in buckets.

    gloo's own sum starts at another rank for each part of a bucket; DDP lays its buckets out anew after the first step
    of a process, so that a run that was resumed would differ from one that was not. As many bytes are sent as by it.
    """
    gradients = bucket.buffer()
    length = -(-len(gradients) // world.size)
    mine = F.pad(gradients, (0, length * world.size - len(gradients)))
    parts = torch.empty_like(mine)
    dist.all_to_all_single(parts, mine)
    total, *others = parts.view(world.size, length)
    for other in others:
        total += other
    total /= world.size
    gradients.copy_(world.gather(total).view(-1)[: len(gradients)])
    done: torch.futures.Future[Tensor] = torch.futures.Future()
    done.set_result(gradients)
    return done


@contextlib.contextmanager
def joined() -> Iterator[World]:
    """The world that this process was started in: of one, or by torchrun's environment variables of several.

    Of several, the others than the first print nothing; whichever meets an error a user can cause is the only one to
    say it, and those whose peers are gone leave too. Raises UserError for an environment that is not whole or wrong.
    """
    size = variable("WORLD_SIZE", 1) if "WORLD_SIZE" in os.environ else 1
    if size == 1:
        yield World()
        return
    missing = [name for name in ("RANK", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT") if not os.environ.get(name)]
    if missing:
        raise UserError(f"WORLD_SIZE is {size}, but {', '.join(missing)} is not set: start the processes by torchrun")
    rank, local_rank = variable("RANK", 0, size - 1), variable("LOCAL_RANK", 0, size - 1)
    address, port = os.environ["MASTER_ADDR"], variable("MASTER_PORT", 1, 65535)
    try:
        socket.getaddrinfo(address, port)  # torch would ask again and again, for all of PATIENCE
        with ended_by_signals():
            store, _, _ = next(dist.rendezvous("env://", timeout=PATIENCE))
            store = dist.PrefixStore(f"{restarts()}/{size}", store)  # torchrun's own, which remembers those of before
            dist.init_process_group(store=store, rank=rank, world_size=size, timeout=PATIENCE)
    except (socket.gaierror, UnicodeError) as error:
        raise UserError(f"MASTER_ADDR is {address!r}, which has no address here ({error})") from None
    except RuntimeError as error:
        taken = "EADDRINUSE" in str(error)
        why = "something listens at MASTER_PORT already: choose another" if taken else last_words(error)
        raise UserError(f"cannot join the other processes at {address}:{port}: {why}") from None
    try:
        with contextlib.ExitStack() as silence:
            if rank > 0:
                silence.enter_context(contextlib.redirect_stdout(silence.enter_context(open(os.devnull, "w"))))
                silence.enter_context(warnings.catch_warnings())
                warnings.simplefilter("ignore")
            yield Several(rank, size, local_rank)
    except KeyboardInterrupt as error:
        if rank > 0:
            sys.exit(EXIT_CODES[type(error)])
        raise
    except (UserError, OSError) as error:
        if said_already(store, rank):
            sys.exit(2)
        raise error
    except RuntimeError as error:
        if not (isinstance(error, dist.DistError) or "gloo" in str(error)):
            raise
        if said_already(store, rank):
            sys.exit(2)
        raise UserError(f"another process is gone, so rank {rank} stops too ({last_words(error)})") from None
    finally:
        dist.destroy_process_group()


def variable(name: str, least: int, most: int | None = None) -> int:
    """The whole number that an environment variable has to be. Raises UserError where it is another, or none."""
    text = os.environ[name]
    value = int(text) if text.isdecimal() and len(text) < 10 else -1
    if value < least or (most is not None and value > most):
        wanted = f"of at least {least}" if most is None else f"from {least} to {most}"
        raise UserError(f"{name} is {text!r:.80}; wanted a whole number {wanted}: start the processes by torchrun")
    return value


@contextlib.contextmanager
def ended_by_signals() -> Iterator[None]:
    """Have SIGINT and SIGTERM end the process at once, where it does not ignore them, as nothing is lost yet.

    torch waits for the others without a look at Python's handlers: for one that died before it came, until SIGKILL.
    """
    numbers = (signal.SIGINT, signal.SIGTERM) if threading.current_thread() is threading.main_thread() else ()
    before = {number: handler for number in numbers if callable(handler := signal.getsignal(number))}
    for number in before:
        signal.signal(number, signal.SIG_DFL)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def launch() -> str | None:
    """The start of torchrun that this process is of, the same in all its restarts; None without torchrun."""
    name = os.environ.get("TORCHELASTIC_RUN_ID")
    if name != "none":  # --rdzv-id, or one that torchrun --standalone drew
        return name
    parent = os.getppid()
    began = Path(f"/proc/{parent}/stat")  # a process' number is given again, not at the same tick
    tick = began.read_text().rpartition(")")[2].split()[19] if began.is_file() else ""
    return f"{socket.gethostname()}:{parent}:{tick}"


def restarts() -> int:
    """How often torchrun has started the processes of this launch anew, because one of them ended."""
    return int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0"))


def said_already(store: dist.Store, rank: int) -> bool:
    """Whether another process has said why all of them end; where all could, the first does.

    From here on SIGTERM is torchrun's, which ends the processes that one of them left: it changes nothing.
    """
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    try:
        for _ in range(10 if rank > 0 else 0):
            if store.check(["said"]):
                break
            time.sleep(0.1)
        return store.add("said", 1) > 1
    except RuntimeError:  # the store is gone with the process that had it
        return False


def last_words(error: RuntimeError) -> str:
    """What a collective's error says, without the place in torch's sources where it was raised, and advice on that."""
    return re.sub(r"^\[\S*\.cc:\d+\] ", "", str(error)).partition(". ")[0]
