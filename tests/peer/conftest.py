"""The peer suite is collected when it is asked for, `pytest -m peer`: collecting it downloads a source distribution."""

# What transformers' tests are marked with.
MARKS = (
    *("accelerate_tests", "flash_attn_test", "flash_attn_3_test", "flash_attn_4_test", "torch_compile_test"),
    *("is_training_test", "is_tensor_parallel_test", "is_expert_parallel_test", "is_fsdp_test", "generate"),
)


def pytest_configure(config):
    for mark in MARKS:
        config.addinivalue_line("markers", f"{mark}: of transformers' own tests")


def pytest_ignore_collect(config):
    return "peer" not in config.option.markexpr or None
