"""Teachers larger than one device, quantised ones and compiled ones: the same rows, or one clear error."""

import shutil
from dataclasses import replace

import compressed_tensors.compressors as compressors
import compressed_tensors.quantization as quantisation
import numpy as np
import pytest
import torch
import transformers
from compressed_tensors.quantization.utils import calculate_qparams

from pipelines.config import TeacherConfig
from pipelines.job.run import execute, prepare
from pipelines.tasks.tasks import TEACHER_TASKS
from pipelines.teacher import load
from pipelines.teacher import model as teacher_module
from pipelines.teacher.heads import Head
from schemas import Cache
from schemas.errors import MismatchError, TeacherError
from tests.pipelines import models
from tests.pipelines.helpers import config, read, run

FEATURES = {"features": ("mean:-1", "last:1")}


def opened_by(monkeypatch, opener):
    """The teacher's class opens its weights by this function."""
    auto = type("Auto", (), {"from_pretrained": staticmethod(opener)})
    monkeypatch.setitem(load.TEACHER_TASKS, "causal-lm", replace(TEACHER_TASKS["causal-lm"], auto=auto))


@pytest.fixture(scope="module")
def quantised(tmp_path_factory, teacher):
    """The session's teacher with its linear layers in int8, as llm-compressor saves one; the head stays."""
    folder = tmp_path_factory.mktemp("quantised") / "t"
    model = transformers.AutoModelForCausalLM.from_pretrained(teacher)
    weights = quantisation.QuantizationArgs(num_bits=8, type="int", strategy="channel", symmetric=True)
    scheme = quantisation.QuantizationScheme(targets=["Linear"], weights=weights)
    settings = quantisation.QuantizationConfig(
        config_groups={"all": scheme}, ignore=["lm_head"], format="pack-quantized"
    )
    quantisation.apply_quantization_config(model, settings)
    for layer in model.modules():
        if hasattr(layer, "weight_scale"):
            smallest, largest = layer.weight.aminmax(dim=1, keepdim=True)
            scale, _ = calculate_qparams(smallest, largest, weights)
            layer.weight_scale.data.copy_(scale)
    compressor = compressors.ModelCompressor.from_pretrained_model(model)
    compressor.compress_model(model)
    model.save_pretrained(folder)
    compressor.update_config(folder)
    transformers.AutoTokenizer.from_pretrained(teacher).save_pretrained(folder)
    return folder


def same(ours, theirs, tolerance):
    assert ours.keys() == theirs.keys()
    for key, row in ours.items():
        np.testing.assert_allclose(row["logsumexp"], theirs[key]["logsumexp"], atol=tolerance)
        np.testing.assert_allclose(row["entropy"], theirs[key]["entropy"], atol=tolerance + 1 / 32)


@pytest.mark.parametrize("device_map", ["auto", "balanced", "sequential"])
def test_a_teacher_that_is_spread_says_the_same(tmp_path, teacher, corpus, whole, device_map):
    summary = run(corpus, teacher, tmp_path / "c", device_map=device_map, **FEATURES)
    assert summary.provenance["device_map"] == device_map
    same(read(tmp_path / "c"), read(whole[0]), 1e-5)


def test_a_spread_classifier_says_the_same(tmp_path, classifier, corpus):
    flags = {"task": "sequence-classification", **FEATURES}
    run(corpus, classifier, tmp_path / "spread", device_map="auto", **flags)
    run(corpus, classifier, tmp_path / "one", **flags)
    ours, theirs = read(tmp_path / "spread"), read(tmp_path / "one")
    same(ours, theirs, 1e-5)
    for key, row in ours.items():
        np.testing.assert_array_equal(row["mean:2"], theirs[key]["mean:2"])


def test_processes_of_one_machine_share_one_spread_teacher(tmp_path, teacher, corpus, whole):
    """What an engine with several processes a machine does: Beam keeps the teacher behind a proxy."""
    job, options = prepare(config(corpus, teacher, tmp_path / "c", device_map="auto", unit_tokens=400))
    elsewhere = replace(job.run, provenance={**job.run.provenance, "runner": "FlinkRunner"})
    execute(replace(job, run=elsewhere), options)
    assert read(tmp_path / "c").keys() == read(whole[0]).keys()
    Cache.open(tmp_path / "c").verify()


def test_what_does_not_fit_the_devices_is_refused(tmp_path, teacher, monkeypatch):
    """accelerate would fetch parts from the disk for every batch."""
    opened = transformers.AutoModelForCausalLM.from_pretrained

    def small(path, **given):
        parts = ("model.embed_tokens", "model.layers.0", "model.norm", "model.rotary_emb", "lm_head")
        place = dict.fromkeys(parts, "cpu") | {"model.layers.1": "disk"}
        return opened(path, **(given | {"device_map": place, "offload_folder": str(tmp_path)}))

    opened_by(monkeypatch, small)
    with pytest.raises(TeacherError, match="does not fit the devices"):
        load.load_model(
            TeacherConfig(path="t", task="causal-lm", device_map="auto"), str(teacher), torch.device("cpu")
        )


@pytest.mark.parametrize("flags", [{}, {"device_map": "auto"}])
def test_a_quantised_teacher_says_nearly_what_the_whole_one_says(tmp_path, quantised, corpus, whole, flags):
    run(corpus, quantised, tmp_path / "c", **flags)
    ours, theirs = read(tmp_path / "c"), read(whole[0])
    assert ours.keys() == theirs.keys()
    far = [np.abs(row["logsumexp"] - theirs[key]["logsumexp"]).max() for key, row in ours.items()]
    assert 0 < max(far) < 1, "it is the quantised one, and it is close"


def test_a_quantised_teacher_has_its_own_fingerprint(tmp_path, quantised, corpus, whole):
    copy = shutil.copytree(whole[0], tmp_path / "c")
    with pytest.raises(MismatchError, match="--teacher, its weights"):
        run(corpus, quantised, copy)


def test_a_head_that_is_quantised_is_refused(teacher):
    model = transformers.AutoModelForCausalLM.from_pretrained(teacher)
    codes = model.lm_head.weight.detach().to(torch.float8_e4m3fn)
    model.lm_head.weight = torch.nn.Parameter(codes, requires_grad=False)
    with pytest.raises(TeacherError, match="head is quantised: LlamaForCausalLM"):
        Head.of(model)


def test_what_the_large_extra_brings_is_named_where_it_is_missing(teacher, monkeypatch):
    def lack(*_, **__):
        raise ImportError("Using a `device_map` requires Accelerate")

    opened_by(monkeypatch, lack)
    wanted = TeacherConfig(path="t", task="causal-lm", device_map="auto")
    with pytest.raises(TeacherError, match=r"requires Accelerate. pip install 'teachonce\[large\]'"):
        load.load_model(wanted, str(teacher), torch.device("cpu"))


def test_a_map_and_the_cpu_exclude_each_other():
    with pytest.raises(ValueError, match="device, device_map cannot be"):
        TeacherConfig(path="t", task="causal-lm", device_map="auto", device="cpu")


@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")  # torch's own, within its compiler
@pytest.mark.skipif(shutil.which("g++") is None, reason="no compiler on this machine")
def test_a_compiled_teacher_says_the_same(tmp_path, corpus):
    """One layer: a minute of compiling is the cost of this test, not of its rows."""
    small = models.causal_teacher(tmp_path / "t", num_hidden_layers=1)
    summary = run(corpus, small, tmp_path / "compiled", compile=True)
    assert summary.provenance["compile"] == "yes"
    assert run(corpus, small, tmp_path / "plain").provenance["compile"] == "no"
    same(read(tmp_path / "compiled"), read(tmp_path / "plain"), 1e-3)


def test_a_teacher_that_cannot_be_compiled_is_one_error(tmp_path, teacher, corpus, monkeypatch):
    compiled = torch.compile
    monkeypatch.setattr(
        teacher_module.torch, "compile", lambda body, **how: compiled(body, backend=no_compiler, **how)
    )
    with pytest.raises(TeacherError, match="the teacher cannot be compiled: ") as caught:
        run(corpus, teacher, tmp_path / "c", compile=True)
    assert "Leave --compile out" in str(caught.value)
    assert "\n" not in str(caught.value)


def no_compiler(*_):
    raise RuntimeError("no compiler here")
