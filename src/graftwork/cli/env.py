"""`graftwork env`: what graftwork finds on this machine."""

from typing import Annotated

from graftwork.cli.settings import Switch


def env(*, json: Annotated[bool, Switch] = False) -> None:
    """Show versions, hardware, the precision that `auto` chooses, and which embedded backbones are installed.

    Parameters
    ----------
    json
        Print JSON.
    """
    import platform
    from importlib.util import find_spec
    from json import dumps

    import torch

    from graftwork.adapters.identity import library_versions
    from graftwork.backbones.checkpoints import EMBEDDED
    from graftwork.backbones.devices import best_device, best_dtype
    from graftwork.cli.table import print_pairs

    device = torch.device(best_device())
    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    facts: dict[str, object] = {
        **library_versions(),
        "platform": platform.platform(),
        "processor": f"{platform.machine()}, {torch.backends.cpu.get_cpu_capability()}",
        "threads": torch.get_num_threads(),
        "gpus": ", ".join(gpus) or "none",
        "device": str(device),
        "dtype auto": str(best_dtype(device)).removeprefix("torch."),
        "backbones": ", ".join(name for name, (package, _, _) in EMBEDDED.items() if find_spec(package)) or "none",
    }
    if json:
        print(dumps(facts))
    else:
        print_pairs(facts)
