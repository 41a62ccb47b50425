"""Models as files for other programs: StableHLO and ONNX, with everything that a prediction needs."""
