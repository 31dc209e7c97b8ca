from shufflectl import errors


def test_nearest_suggests_a_close_name() -> None:
    assert "did you mean 'tflite'?" == errors.nearest("tflight", ["onnx", "tflite"])


def test_nearest_lists_the_choices_when_none_is_close() -> None:
    assert "choose from: onnx, tflite" == errors.nearest("caffe", ["onnx", "tflite"])


def test_an_unsupported_operator_names_node_operator_and_place() -> None:
    error = errors.UnsupportedOperatorError("head.0", "Einsum", "tflite", why="no equation")
    assert "tflite cannot take operator Einsum (node 'head.0'): no equation" == str(error)


def test_every_error_is_public_and_has_an_exit_code() -> None:
    kinds = [k for k in vars(errors).values() if isinstance(k, type) and issubclass(k, Exception)]
    for kind in kinds:
        assert kind.__name__ in errors.__all__
        assert kind.exit_code in (*range(1, 9), 130)
