"""Models as files for other programs: StableHLO and ONNX, with all that a prediction needs."""
