"""Federations without Flower: requests go to sites in this process, one after the other."""

import pytest
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from adlight.federated.rounds import Place, Server
from adlight.federated.site import handle_request
from adlight.runs.config import CONF
from adlight.runs.federation import FederationFolder
from adlight.runs.folder import RunFolder


class Federation:
    """A federation in a folder, begun as the command begins it, and led without Flower.

    `stop_at` names a site's part, (kind, round, site), before which all is stopped; `asked` lists those that were done,
    `replies` what the sites answered.
    """

    def __init__(self, adlight, name, names, *words):
        self.folder, self.names = FederationFolder(adlight.folder / "federations" / name), names
        self.stop_at, self.asked, self.replies = None, [], []
        self.compose(*words)
        self.folder.begin({"command": "adlight federate"})

    def compose(self, *words):
        with initialize_config_dir(str(CONF), version_base="1.3"):
            whole = compose("federate", [*words, f"run_dir={self.folder}"], return_hydra_config=True)
        config = OmegaConf.create({key: node for key, node in OmegaConf.to_container(whole).items() if key != "hydra"})
        RunFolder(self.folder.path).write_composed(config, dict(whole.hydra.runtime.choices))

    def run(self):
        Server(self.folder, self.exchange).run()
        return self

    def exchange(self, request):
        replies = []
        for number, name in enumerate(self.names):
            part = (request.kind, request.settings.get("round"), name)
            if part == self.stop_at:
                raise KeyboardInterrupt
            replies.append(self.handle_request(number, request))
            self.asked.append(part)
        self.replies += replies
        return replies

    def handle_request(self, number, request):
        return handle_request(request, Place(number, self.folder.site(self.names[number])))

    @property
    def weights(self):
        return self.folder.averaged().weights


@pytest.fixture(scope="module")
def federation(adlight):
    """Begins a federation: `federation("name", ["bottle", "screw"], words ...)`."""
    quick = [word for word in adlight.quick if not word.startswith("trainer.max_epochs")]
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(adlight.folder)
        yield lambda name, names, *more, words=quick: Federation(adlight, name, names, *words, *more)
