"""Names of other libraries -> how to do the same here, for users of these libraries."""

from __future__ import annotations

from typing import Final

_TRAIN = 'recame.train("images/", epochs=5, out="runs/first")'
_EVALUATE = "recame.evaluate(run)"
_LOAD = 'recame.load("runs/first")'
_EXPORT = 'recame.export_bundle(run, format="onnx")'
_JUDGE = "recame.evaluate_probabilities(labels, model.predict_proba(images), model.classes_)"
_NETWORK = 'recame.MultiExpertClassifier.from_config({"model.backbone": NAME}, num_classes=4)'

#: Whose attribute is asked for -> name there -> our way.
_WAYS: Final[dict[str, dict[str, str]]] = {
    "recame": {
        **dict.fromkeys(("fit", "Trainer", "TrainingArguments", "Learner", "fine_tune"), _TRAIN),
        **dict.fromkeys(("vision_learner", "cnn_learner", "ImageDataLoaders"), _TRAIN),
        **dict.fromkeys(("YOLO", "pipeline", "from_pretrained", "load_model", "Model"), _LOAD),
        **dict.fromkeys(("val", "validate", "test", "score"), _EVALUATE),
        **dict.fromkeys(("export", "to_onnx"), _EXPORT),
        "create_model": _NETWORK,
        "list_models": 'timm.list_models(), whose names are {"model.backbone": NAME} here',
        "benchmark": "recame.measure_latency(bundle), or recame.run_bench of several methods",
        "tune_hyperparameters": "recame.run_bench",
    },
    "Predictor": {
        **dict.fromkeys(("train", "fit", "fine_tune", "fit_one_cycle", "partial_fit"), _TRAIN),
        **dict.fromkeys(("val", "validate", "evaluate", "test"), _EVALUATE),
        **dict.fromkeys(("export", "to_onnx", "save", "save_pretrained"), _EXPORT),
        "score": _JUDGE,
        "show_results": "model.predict(images).plot()",
        "names": "model.classes_",
        "get_preds": "model.predict_proba(images)",
        "decision_function": "model.predict_proba(images)",
        "predict_log_proba": "numpy.log(model.predict_proba(images))",
        "from_pretrained": _LOAD,
        "to": 'recame.load("runs/first", device="cuda")',
    },
    "PredictionList": {
        **dict.fromkeys(("to_df", "to_pandas", "pandas", "to_csv"), "results.to_frame()"),
        **dict.fromkeys(("show", "save", "render"), 'results.plot().savefig("results.png")'),
        **dict.fromkeys(("probs", "boxes"), "results.probabilities"),
        "label": "results.labels",
        "names": "results.classes",
    },
    "Prediction": {
        **dict.fromkeys(("probs", "scores"), "prediction.probabilities"),
        **dict.fromkeys(("score", "conf", "top1conf", "probability"), "prediction.confidence"),
        **dict.fromkeys(("top1", "cls", "class_", "name", "prediction"), "prediction.label"),
        "path": "prediction.image",
    },
}


def attribute_error(owner: object, name: str) -> AttributeError:
    """What to raise for an attribute that is not there; Python adds the nearest name itself.

    Args:
        owner: the object.
        name: of the attribute.
    """
    kind = type(owner).__name__
    text = f"{kind!r} object has no attribute {name!r}"
    if (way := _WAYS.get(kind, {}).get(name)) is not None:
        text += f". In recame: {way}"
    return AttributeError(text, name=name, obj=owner)


def way_of(name: str) -> str | None:
    """How to do here what another package does under a public name; None if it is unknown.

    Args:
        name: as typed after `recame.`.
    """
    return _WAYS["recame"].get(name)
