"""A page of ours as a client without a browser asks for it, and in a real one."""

import contextlib
import http.client

from tests.builders import BROWSER


def ask(server, method, path, body=None, **headers):
    """Returns (status, headers, body)."""
    connection = http.client.HTTPConnection(*server.server_address[:2], timeout=60)
    with contextlib.closing(connection):
        with contextlib.suppress(ConnectionError):  # who refuses does not read a body to its end
            connection.request(method, path, body, headers)
        answer = connection.getresponse()
        return answer.status, answer.headers, answer.read()


@contextlib.contextmanager
def opened(server, microphone=None, before="", **options):
    """Yields (browser page, what went wrong): requests to others are among that.

    Args:
        server: Whose page.
        microphone: A WAV file that the browser's test device plays; None for its beeps.
        before: A script that runs before those of the page.
        **options: Of the browser's context.
    """
    from playwright.sync_api import sync_playwright

    troubles = []
    ours = ("data:", f"blob:{server.url}", server.url)
    with sync_playwright() as player:
        browser = player.chromium.launch(
            executable_path=BROWSER,
            args=["--no-sandbox", "--autoplay-policy=no-user-gesture-required",
                  "--use-fake-device-for-media-stream", "--use-fake-ui-for-media-stream",
                  *([f"--use-file-for-fake-audio-capture={microphone}"] if microphone else [])],
        )  # fmt: skip
        tab = browser.new_context(**options).new_page()
        tab.on("console", lambda message: troubles.append(message.text))
        tab.on("pageerror", lambda error: troubles.append(str(error)))
        tab.on("request", lambda r: None if r.url.startswith(ours) else troubles.append(r.url))
        tab.add_init_script(before)
        tab.goto(server.url)
        yield tab, troubles
        browser.close()
