from __future__ import annotations

import os
import socket

import pytest
from pytest_socket import SocketConnectBlockedError


@pytest.mark.filterwarnings("ignore:A test tried to use socket")
@pytest.mark.parametrize("host", ["192.0.2.1", "2001:db8::1"])
def test_a_test_cannot_reach_a_foreign_host(host):
    """No test reaches anything but this machine."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family) as sock, pytest.raises(SocketConnectBlockedError, match=host):
        sock.connect((host, 80))


def test_loopback_stays_open():
    """Servers that a test starts on loopback are reachable."""
    with (
        socket.create_server(("127.0.0.1", 0)) as server,
        socket.create_connection(server.getsockname()) as client,
    ):
        assert client.getpeername() == server.getsockname()


def test_hub_and_tracing_are_off():
    """No test loads from a hub or sends a trace to a service."""
    assert os.environ["HF_HUB_OFFLINE"] == "1"
    assert os.environ["LANGSMITH_TRACING"] == "false"
    assert "OPENAI_API_KEY" not in os.environ
