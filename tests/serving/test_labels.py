"""Labels over real sockets: what is kept beside the run, what is refused, and that the run learns from it."""

import errno
import hashlib
import io
import shutil
from concurrent.futures import ThreadPoolExecutor

import httpx
import numpy as np
import pytest
from PIL import Image
from readers import one_line

from adlight.runs import labels as files
from adlight.runs.folder import RunFolder
from adlight.runs.labels import LabelFolder, source_run
from adlight.serve import open_labels
from adlight.types import UserError


def png(array):
    file = io.BytesIO()
    Image.fromarray(array).save(file, "PNG")
    return file.getvalue()


def drawing(left, size=(32, 32)):
    mask = np.zeros(size, np.uint8)
    mask[8:20, left : left + 5] = 255
    return png(mask)


@pytest.fixture
def empty(labelling):
    """The server, without labels."""
    shutil.rmtree(labelling.service.labels.folder.path, ignore_errors=True)
    return labelling


def post(served, label, image, mask=None, category="bottle", name="part.png", **parts):
    content = {"mask": mask, **parts}
    form = {"image": (name, image), **{field: (f"{field}.png", one) for field, one in content.items() if one}}
    return served.client.post("labels", files=form, params={"label": label, "category": category})


def counts(served):
    found = served.client.get("labels").json()
    return found["images"], found["normal"], found["anomalous"], found["masks"]


def test_images_are_kept_as_they_were_sent(empty):
    good, bad = (empty.images["bottle"][i].read_bytes() for i in (0, -1))
    assert counts(empty) == (0, 0, 0, 0) and not empty.service.labels.folder.path.exists()
    answer = post(empty, "anomalous", bad, drawing(3), name="../=cmd\n.png")
    assert answer.status_code == 201
    found = answer.json()
    assert found["label"] == "anomalous" and found["mask"] and found["category"] == "bottle" and found["before"] is None
    answer = empty.client.post("labels", content=good, params={"label": "normal", "category": "pooled"})
    assert answer.status_code == 201 and answer.json()["category"] is None
    assert counts(empty) == (2, 1, 1, 1) and answer.json()["labels"]["images"] == 2
    first, second = empty.service.labels.folder.read()
    with open(first.path, "rb") as file:
        assert file.read() == bad and hashlib.sha256(bad).hexdigest().startswith(first.path.split("/")[-1][:20])
    assert (first.label, first.category, second.label, second.category, second.mask) == (1, "bottle", 0, "", None)
    assert (np.asarray(Image.open(first.mask)) > 0).sum() == 12 * 5
    table = (empty.service.labels.folder.path / "labels.csv").read_text()
    assert "served: " in table and table.count("\n") == 3


def test_the_last_label_counts_and_it_is_told(empty):
    image = empty.images["screw"][0].read_bytes()
    assert post(empty, "normal", image).json()["changed"]
    again = post(empty, "normal", image)
    assert again.status_code == 200 and not again.json()["changed"]
    other = post(empty, "anomalous", image, drawing(3)).json()
    assert other["changed"] and other["before"] == {"label": "normal", "mask": False}
    redrawn = post(empty, "anomalous", image, drawing(9)).json()
    assert redrawn["changed"] and redrawn["before"] == {"label": "anomalous", "mask": True}
    assert counts(empty) == (1, 0, 1, 1)
    (kept,) = empty.service.labels.folder.read()
    assert np.asarray(Image.open(kept.mask))[8:20].any(0).nonzero()[0].tolist() == [9, 10, 11, 12, 13]
    assert post(empty, "normal", image).json()["labels"]["masks"] == 0


def test_categories_are_those_of_a_prediction(empty):
    image = empty.images["screw"][0].read_bytes()
    predicted = empty.predict(image, category="auto").json()["threshold_source"]
    assert post(empty, "normal", image, category="auto").json()["category"] == predicted
    assert "did you mean screw" in one_line(post(empty, "normal", image, category="scrw"), 422)
    assert "bottle, screw" in one_line(post(empty, "normal", image, category=None), 422)


GOOD = png(np.random.default_rng(0).integers(256, size=(32, 32), dtype=np.uint8))


@pytest.mark.parametrize(
    ("label", "image", "parts", "code", "said"),
    [
        ("maybe", GOOD, {}, 422, "normal, anomalous"),
        ("", GOOD, {}, 422, "normal, anomalous"),
        ("normal", b"<svg/>", {}, 415, "part.png"),
        ("normal", GOOD[:90], {}, 422, "truncated"),
        ("normal", png(np.zeros((5, 5), np.uint8)), {}, 422, "5x5"),
        ("normal", png(np.zeros((600, 600), np.uint8)), {}, 413, "0.25 million pixels"),
        ("normal", bytes(500_000), {}, 413, "0.4 MB"),
        ("normal", GOOD, {"mask": drawing(3)}, 422, "normal"),
        ("anomalous", GOOD, {"mask": drawing(3, (32, 40))}, 422, "40x32"),
        ("anomalous", GOOD, {"mask": drawing(3)[:60]}, 422, "mask"),
        ("anomalous", GOOD, {"mask": b"no mask"}, 415, "mask"),
        ("anomalous", GOOD, {"mask": png(np.zeros((32, 32), np.uint8))}, 422, "mask"),
        ("anomalous", GOOD, {"mask": png(np.full((32, 32), 9, np.uint8))}, 422, "mask"),
        ("anomalous", GOOD, {"masc": drawing(3)}, 400, "mask"),
        ("anomalous", GOOD, {"mask": drawing(3), "more": GOOD}, 400, "2"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_cannot_be_used_is_one_line_and_leaves_nothing(empty, label, image, parts, code, said):
    assert said in one_line(post(empty, label, image, **parts), code)
    assert not empty.service.labels.folder.path.exists() and empty.service.queue.held == 0


def test_a_mask_alone_is_no_label(empty):
    answer = empty.client.post("labels", files={"mask": drawing(3)}, params={"label": "anomalous", "category": "screw"})
    assert "image" in one_line(answer, 400)


def test_there_is_an_end_to_how_many_are_kept(empty):
    images = [path.read_bytes() for path in empty.images["screw"][:7]]
    assert [post(empty, "normal", one).status_code for one in images] == [201] * 6 + [507]
    assert "max_labels" in one_line(post(empty, "normal", images[6]), 507) and counts(empty)[0] == 6
    assert post(empty, "anomalous", images[0]).json()["before"]["label"] == "normal"  # an old one may still change


def test_several_clients_at_once(empty):
    images = [path.read_bytes() for path in empty.images["screw"][:4]]

    def send(i):
        query = {"label": ("normal", "anomalous")[i % 2], "category": "screw"}
        return httpx.post(f"{empty.url}labels", content=images[i // 2], params=query, timeout=60).json()

    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(send, range(8)))
    assert sum(one["before"] is None for one in answers) == 4 and all(one["changed"] for one in answers)
    kept = {record.path.split("/")[-1]: record.label for record in empty.service.labels.folder.read()}
    for i, image in enumerate(images):  # the later of two clients had the last word
        last = max(answers[2 * i : 2 * i + 2], key=lambda one: one["before"] is not None)
        key = hashlib.sha256(image).hexdigest()[:20]
        assert kept[f"{key}.png"] == int(last["label"] == "anomalous")


@pytest.mark.parametrize(("number", "code", "said"), [(errno.ENOSPC, 507, "full"), (errno.EACCES, 500, "ermission")])
def test_a_full_disk_is_one_line_and_loses_nothing(empty, monkeypatch, number, code, said):
    first, second = (path.read_bytes() for path in empty.images["screw"][:2])
    post(empty, "anomalous", first, drawing(3))
    before = empty.service.labels.folder.read()

    def fail(path, content):
        raise OSError(number, "No space" if number == errno.ENOSPC else "Permission denied", str(path))

    with monkeypatch.context() as patch:
        patch.setattr(files, "write_atomically", fail)
        for image in (first, second):
            assert said in one_line(post(empty, "normal", image), code)
    assert empty.service.labels.folder.read() == before and post(empty, "normal", second).status_code == 201


def test_a_damaged_table_is_one_line(empty, capsys):
    folder = empty.service.labels.folder.path
    folder.mkdir()
    (folder / "labels.csv").write_text("path,label\na,2\n")
    one_line(post(empty, "normal", empty.images["screw"][0].read_bytes()), 500)
    assert str(folder) not in one_line(empty.client.get("labels"), 500) and "damaged" in capsys.readouterr().err


def test_labels_are_kept_only_where_that_is_asked_for(served, with_token, tiny_run):
    assert served.client.get("labels").json()["max_labels"] == 0
    assert "not kept" in one_line(post(served, "normal", b"x"), 403) and not (tiny_run[0] / "labels").exists()
    assert one_line(post(with_token, "normal", b"x"), 401) and one_line(with_token.client.get("labels"), 401)
    elsewhere = {"origin": "http://evil.example"}
    assert one_line(served.client.post("labels", content=b"x", headers=elsewhere), 403)


def test_a_graph_has_no_labels():
    assert open_labels("detector.onnx", 0).describe()["refusal"]
    with pytest.raises(UserError, match=r"detector\.onnx"):
        open_labels("detector.onnx", 5)


def test_a_run_learns_from_what_the_page_was_told(empty, labelled_run, adlight):
    normal, defect = empty.images["bottle"][0], empty.images["bottle"][-1]
    assert "good" in str(normal) and "good" not in str(defect)
    post(empty, "normal", normal.read_bytes())
    post(empty, "anomalous", defect.read_bytes(), drawing(3))
    outcome = adlight("learn", f"run={labelled_run}", "device=cpu")
    assert outcome.code == 0, outcome.err
    assert "bottle: 1 labelled defects (1 with masks), 1 normal" in outcome.out
    assert "2 labelled images are of the run's test" in outcome.out  # known by what is in them
    (learned,) = (labelled_run / "learned").iterdir()
    labels = open_labels(str(learned), 5)  # those of a learned detector teach the run that it came from
    assert labels.folder.path.samefile(LabelFolder(labelled_run).path) and labels.describe()["images"] == 2
    shutil.copytree(learned, labelled_run.parent / "moved" / "learned")
    with pytest.raises(UserError, match="moved"):
        source_run(RunFolder(labelled_run.parent / "moved" / "learned"))
