"""The address guard, the proxy, and what is never shown."""

import socket

import pytest
from yarl import URL

from comfyd.host.net import ForbiddenAddress, Net, Request, UrlRefused, check_url, guarded_socket, is_public, shown
from tests.environments.fileserver import Served, serving

PRIVATE = [
    "127.0.0.1", "127.255.255.254", "0.0.0.0", "10.0.0.1", "172.16.0.1", "192.168.1.1", "169.254.169.254", "100.64.0.1",
    "224.0.0.1", "240.0.0.1", "255.255.255.255", "::", "::1", "fe80::1", "fe80::1%eth0", "fd00::1", "ff02::1",
    "::ffff:127.0.0.1", "::ffff:10.0.0.1", "64:ff9b::7f00:1", "64:ff9b::a9fe:a9fe", "2002:7f00:1::", "2002:a00:1::",
    "not an address", "",
]  # fmt: skip


@pytest.mark.parametrize("address", PRIVATE)
def test_private_addresses_get_no_socket(address: str) -> None:
    assert not is_public(address)
    with pytest.raises(ForbiddenAddress):
        guarded_socket((socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, 80)))


@pytest.mark.parametrize("address", ["8.8.8.8", "1.1.1.1", "2606:4700::1111", "::ffff:8.8.8.8", "64:ff9b::808:808"])
def test_public_addresses_get_one(address: str) -> None:
    guarded_socket((socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, 80))).close()


@pytest.mark.parametrize(
    "url",
    [
        "file:///etc/passwd", "ftp://h/x", "gopher://h/x", "//h/x", "/x", "https:///x", "http://h:22/x", "http://h:0/x",
        "http://127.0.0.1/x", "http://[::1]/x", "http://2130706433/x", "http://0x7f000001/x", "http://0177.0.0.1/x",
        "http://127.1/x", "http://127.0.0.1./x",
    ],
)  # fmt: skip
def test_urls_that_are_never_asked(url: str) -> None:
    with pytest.raises(UrlRefused):
        check_url(URL(url), allow_private=False)


@pytest.mark.parametrize("url", ["https://huggingface.co/x", "http://h:8080/x", "https://8.8.8.8/x"])
def test_urls_that_may_be_asked(url: str) -> None:
    check_url(URL(url), allow_private=False)


def test_secrets_of_a_url_are_not_shown() -> None:
    assert shown("https://user:secret@h/x?token=secret#secret") == "https://h/x"
    assert "secret" not in shown("https://user:secret@h:port/x?token=secret")


@pytest.mark.asyncio
async def test_a_configured_proxy_is_used_but_not_for_literals() -> None:
    async with serving() as proxy:
        proxy.files["/m.bin"] = Served(b"by proxy")
        net = Net(proxies={"http": proxy.base, "no": "direct.invalid"})
        try:
            async with net.get(Request(URL("http://model.invalid/m.bin"))) as response:
                assert await response.read() == b"by proxy"
            with pytest.raises(UrlRefused):
                async with net.get(Request(URL("http://127.0.0.1/m.bin"))):
                    pass
            assert net._proxy(URL("http://direct.invalid/")) is None
        finally:
            await net.aclose()
        assert [headers["Host"] for _, headers in proxy.asked] == ["model.invalid"]


@pytest.mark.asyncio
async def test_a_redirect_into_the_machine_is_refused() -> None:
    async with serving() as proxy, serving() as inside:
        inside.files["/x"] = Served(b"inside")
        targets = [inside.url("/x"), "http://169.254.169.254/x", "http://[::ffff:127.0.0.1]/x", "file:///etc/passwd"]
        proxy.files["/go"] = Served(b"", statuses=[(302, {"Location": target}) for target in targets])
        net = Net(proxies={"http": proxy.base})
        try:
            for _ in targets:
                with pytest.raises(UrlRefused):
                    async with net.get(Request(URL("http://model.invalid/go"))):
                        pass
        finally:
            await net.aclose()
        assert inside.asked == []
