"""Message transport by Flower: a simulation on one machine, or a SuperLink with one SuperNode per site.

`server` and `client` are components of the app that `write_app` writes and `flwr run` starts.
"""

import json
import logging
import signal
import threading
import warnings
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from pathlib import Path
from typing import Any

from flwr.app import ArrayRecord, ConfigRecord, Context, Message, MessageType, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp

from adlight.federated.rounds import Place, Reply, Request, Server
from adlight.federated.site import handle_request
from adlight.federated.weights import Weights
from adlight.runs.federation import FederationFolder, site_names
from adlight.types import UserError

TYPES = {"begin": MessageType.QUERY, "train": MessageType.TRAIN}  # otherwise EVALUATE
TIMEOUT = 30 * 24 * 3600.0  # seconds per round and site
POLL_INTERVAL = 0.2  # seconds

server = ServerApp()  # looked up by name
client = ClientApp()


class GridExchange:
    """Sends a request to all sites and waits for their replies.

    Args:
        grid: Flower's connection to the sites.
        sites: Names of the sites.
        stopped: Event that ends the waiting, set when a simulation is interrupted.
    """

    def __init__(self, grid: Grid, sites: Sequence[str], stopped: threading.Event | None = None) -> None:
        self.grid, self.sites, self.stopped = grid, sites, stopped or threading.Event()
        self.names: dict[int, str] = {}  # by Flower's number of the node, of the sites that have replied

    def __call__(self, request: Request) -> list[Reply]:
        """Send a request and wait for all replies; raise a UserError if a site has disconnected or failed."""
        kind = TYPES.get(request.kind, MessageType.EVALUATE)
        content = _pack(request.kind, request.settings, request.weights)
        messages = [Message(content, node, kind, ttl=TIMEOUT) for node in self._nodes()]
        waiting, replies = set(self.grid.push_messages(messages)), list[Reply]()
        while waiting:
            for message in self.grid.pull_messages(waiting):
                waiting.discard(message.metadata.reply_to_message_id)
                node = message.metadata.src_node_id
                if message.has_error():
                    reason, name = " ".join(str(message.error.reason).split())[:200], self.names.get(node, "a site")
                    raise UserError(f"{name} has disconnected, or its process has failed: {reason}")
                values, weights = _unpack(message.content)
                if 0 <= values["site"] < len(self.sites):
                    self.names[node] = self.sites[values["site"]]
                replies.append(Reply(values["site"], values["values"], weights, values["error"]))
            self._pause()
        return replies

    def _nodes(self) -> list[int]:
        reported = False
        while len(nodes := list(self.grid.get_node_ids())) < len(self.sites):
            if not reported:
                print(f"waiting for {len(self.sites)} sites ({len(nodes)} are connected)", flush=True)
            reported = True
            self._pause()
        return nodes

    def _pause(self) -> None:
        if self.stopped.wait(POLL_INTERVAL):
            raise SystemExit("stopped")


@server.main()
def serve(grid: Grid, context: Context) -> None:
    """Run the federation whose folder the app names, on the SuperLink's machine."""
    folder = FederationFolder(str(context.run_config["folder"]))
    Server(folder, GridExchange(grid, site_names(folder.config()))).run()


@client.query()
@client.train()
@client.evaluate()
def reply(message: Message, context: Context) -> Message:
    """Handle a request as the SuperNode's site or, in a simulation, as one of the federation's sites."""
    values, weights = _unpack(message.content)
    request = Request(values["kind"], values["settings"], weights)
    try:
        answer = handle_request(request, _place(context, request))
    except UserError as error:
        answer = Reply(-1, {}, {}, str(error))
    values = {"site": answer.site, "values": answer.values, "error": answer.error}
    return Message(_pack("", values, answer.weights), reply_to=message)


def simulate(folder: FederationFolder, cpus: int, gpus: float) -> None:
    """Run all sites on this machine by Flower's simulation, as many at a time as its CPUs and GPUs allow.

    Each site takes `cpus` CPUs and `gpus` GPUs, which may be a fraction. For errors see `Server.run`.
    """
    import ray
    from flwr.simulation import run_simulation

    logger = logging.getLogger("flwr")
    logger.propagate = False  # Hydra's root logger would print all levels
    logger.setLevel(logging.CRITICAL)  # errors come back as replies; Ctrl-C would print a traceback of each site
    warnings.filterwarnings("ignore", ".*accelerator visible devices.*", FutureWarning)  # Ray's
    logging.getLogger("ray._private.worker").setLevel(logging.ERROR)  # it leaves SIGTERM to this thread, and says so
    names, stopped, local = site_names(folder.config()), threading.Event(), ServerApp()

    @local.main()
    def lead(grid: Grid, context: Context) -> None:
        Server(folder, GridExchange(grid, names, stopped)).run()

    resources: Any = {"client_resources": {"num_cpus": cpus, "num_gpus": gpus}, "init_args": {"log_to_driver": False}}
    with ThreadPoolExecutor(1) as thread:  # Ctrl-C within Ray or Flower may be lost, or leave their threads waiting
        simulation = thread.submit(run_simulation, local, client, len(names), backend_config=resources)
        handler, is_main = signal.getsignal(signal.SIGTERM), threading.current_thread() is threading.main_thread()
        try:
            while not wait([simulation], timeout=1).done:
                if is_main:
                    signal.signal(signal.SIGTERM, handler)  # Ray's own, which aborts, has replaced it at Ray's start
            simulation.result()
        finally:
            stopped.set()  # the server's thread ends, then Flower ends Ray; ending Ray here would abort the process
            if not simulation.done() and not ray.is_initialized():
                print("stopping as soon as Ray has started", flush=True)


def write_app(path: Path, folder: FederationFolder) -> None:
    """Write the Flower app of a federation, which `flwr run` submits to the SuperLink."""
    path.mkdir(parents=True, exist_ok=True)
    lines = [
        *("[project]", 'name = "adlight-federated"', 'version = "1.0.0"', 'license = "Apache-2.0"'),
        *('description = "Federated training by adlight"', "dependencies = []", ""),
        *("[tool.flwr.app]", 'publisher = "adlight"', ""),
        "[tool.flwr.app.components]",
        *(f'{name}app = "{__name__}:{name}"' for name in ("server", "client")),
        *("", "[tool.flwr.app.config]", f"folder = {json.dumps(str(folder.path.absolute()))}"),
    ]
    (path / "pyproject.toml").write_text("\n".join(lines) + "\n")


def _place(context: Context, request: Request) -> Place:
    """Read the site's settings from the SuperNode; by default its folder lies in the federation's folder."""
    node: Any = context.node_config
    if "partition-id" not in node:
        raise UserError("the SuperNode's site is not set: add --node-config 'partition-id=0 folder=\"bottle\"'")
    number, names = int(node["partition-id"]), request.settings["names"]
    name = names[number] if 0 <= number < len(names) else f"site-{number}"
    folder = Path(str(node.get("folder") or FederationFolder(request.settings["folder"]).site(name)))
    return Place(number, folder.absolute(), node.get("root"), node.get("accelerator"))


def _pack(kind: str, values: dict[str, Any], weights: Weights) -> RecordDict:
    values = {"kind": kind, "settings": values} if kind else values
    arrays = ArrayRecord(weights) if weights else ArrayRecord()
    return RecordDict({"values": ConfigRecord({"json": json.dumps(values)}), "weights": arrays})


def _unpack(content: RecordDict) -> tuple[dict[str, Any], Weights]:
    values: Any = content["values"]
    weights: Any = content["weights"]
    return json.loads(values["json"]), dict(weights.to_torch_state_dict())
