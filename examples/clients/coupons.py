#!/usr/bin/env python3
"""Coupons through zvgate, with Python's standard library alone.

    coupons.py URL list CUSTOMER            prints the coupons that the customer can redeem now
    coupons.py URL status CUSTOMER CARD     prints the status of one, not from the cache
    coupons.py URL redeem CUSTOMER CARD ID  redeems one; ID is your own id of the redemption (bizId)
    coupons.py URL reverse ID CUSTOMER      undoes a redemption

The caller's key, if the gateway wants one, is read from ZVGATE_KEY, and the tenant's name from ZVGATE_TENANT.
Exit status: 0 done, 1 failed, and nothing was executed, 2 wrong usage, 3 the platform refused,
4 nobody knows whether it was executed.
"""

import http.client
import json
import os
import sys
import time
import urllib.error
import urllib.request

# Seconds. Above the gateway's own limits (server.request_timeout, server.write_request_timeout): the gateway answers first.
READ_TIMEOUT = 20
WRITE_TIMEOUT = 30
# For so long the gateway goes on with a write whose caller has gone (server.write_request_timeout).
WRITE_LASTS = 25
# How long to go on when the gateway says "later". The gateway retries reads itself: do not retry anything else.
PATIENCE = 10
# After an unknown outcome: how often to look at least, with a pause between, since the platform may lag.
LOOKS = 3
LOOK_PAUSE = 2

ROUTES = "/v3/crm/coupon/"
# The platform's codes for "throttled" and "busy": it did nothing.
LATER = ("110004", "110007")


class Failed(Exception):
    """The request failed, and nothing was executed: `name` is the gateway's name of the error, `status` the HTTP status."""

    def __init__(self, status, name, detail, request_id=None, retry_after=None):
        super().__init__(f"{name} ({status}): {detail} [request {request_id}]")
        self.status, self.name, self.retry_after = status, name, retry_after


class Refused(Exception):
    """The platform answered with a business exception, and executed nothing."""


class Unknown(Exception):
    """A write may have been executed, or not. `is_over`: the gateway itself has given up."""

    def __init__(self, cause, is_over=False):
        super().__init__(cause)
        self.is_over = is_over


class NoRedirects(urllib.request.HTTPRedirectHandler):
    """A redirection would take the key, and perhaps the write, somewhere else."""

    def redirect_request(self, *_):
        return None


class Gateway:
    def __init__(self, url, key=None, tenant=None):
        self.url = url.rstrip("/")
        self.headers = {"Content-Type": "application/json"}
        # The gateway is in your own network: no proxy on the way.
        self.opener = urllib.request.build_opener(NoRedirects, urllib.request.ProxyHandler({}))
        if key:
            self.headers["Authorization"] = f"Bearer {key}"
        if tenant:
            self.headers["X-Zvgate-Tenant"] = tenant

    def coupons(self, customer, usable=False):
        """A customer's coupons."""
        answer = self._list({"customerId": customer, "usable": usable}, {})
        if not answer["complete"]:
            print("warning: there are more coupons than the platform lists", file=sys.stderr)
        return answer["coupons"]

    def status(self, customer, card):
        """The status of a coupon, not from the cache."""
        answer = self._list({"customerId": customer, "cardId": card}, {"Cache-Control": "no-cache"})
        found = [coupon for coupon in answer["coupons"] if coupon["cardId"] == card]
        return found[0]["status"]["name"] if found else "not there"

    def redeem(self, customer, card, biz_id):
        """Redeems a coupon; returns if it was redeemed."""
        # What the customer sees may be some seconds old; what is about to be redeemed must not be.
        status = self.status(customer, card)
        if status != "unused":
            raise Refused(f"the coupon is {status}")
        sent = time.monotonic()
        try:
            self._write("writeOffCoupon", {"bizId": biz_id, "customerId": customer, "couponsCardList": [card]}, customer)
        except Unknown as unknown:
            try:
                self._find_out(unknown, sent, customer, card, biz_id)
            except (Failed, Refused):
                # It could not be found out.
                raise unknown from None

    def _find_out(self, unknown, sent, customer, card, biz_id):
        """After an unknown outcome: returns if it was redeemed."""
        looks = 0
        while looks < LOOKS or not (unknown.is_over or time.monotonic() > sent + WRITE_LASTS):
            if self.status(customer, card) == "redeemed":
                return
            looks += 1
            time.sleep(LOOK_PAUSE)
        # It may still come: undo it, so that another try starts from a known state. If there is nothing to undo, the platform says so.
        try:
            self.reverse(biz_id, customer)
        except Refused:
            pass
        raise NotRedeemed("it was not redeemed; try again with another id")

    def reverse(self, biz_id, customer):
        """Undoes a redemption."""
        self._write("couponReverse", {"bizId": biz_id}, customer)

    def _list(self, body, headers):
        _, answer = self._patiently("/v1/coupons:list", body, headers, READ_TIMEOUT)
        if not isinstance(answer.get("coupons"), list):
            raise Failed(200, "http", "this is not the answer of a gateway")
        return answer

    def _write(self, route, params, customer):
        """Sends a write. With the customer, the gateway knows whose coupons changed whatever comes of it."""
        named = {"X-Zvgate-Customer": json.dumps(customer)}
        headers, answer = self._patiently(ROUTES + route, {"params": params}, named, WRITE_TIMEOUT)
        outcome, code = headers.get("X-Zvgate-Outcome"), str(answer.get("code"))
        if outcome == "executed":
            return
        if outcome != "refused":
            raise Unknown(f"outcome {outcome}", outcome == "unknown")
        said = f"the platform refused: {code} {answer.get('message')}"
        # The platform writes true or "true", 0 or "0".
        if str(answer.get("status")).lower() == "true" and code not in LATER:
            raise Refused(said)
        raise Failed(200, "refused", said)

    def _patiently(self, path, body, headers, timeout):
        """Repeats what was not sent for as long as the gateway asks to wait, within PATIENCE."""
        until = time.monotonic() + PATIENCE
        while True:
            try:
                return self._send(path, body, headers, timeout)
            except Failed as failed:
                pause = failed.retry_after
                if pause is None or time.monotonic() + pause > until:
                    raise
                time.sleep(pause)

    def _send(self, path, body, headers, timeout):
        is_write = path.startswith(ROUTES)
        try:
            request = urllib.request.Request(self.url + path, json.dumps(body).encode(), {**self.headers, **headers})
            response = self.opener.open(request, timeout=timeout)
        except urllib.error.HTTPError as error:
            response = error
        except urllib.error.URLError as error:
            if is_write and not isinstance(error.reason, ConnectionRefusedError):
                raise Unknown(str(error.reason)) from None
            raise Failed(0, "unreachable", error.reason) from None
        except ValueError as error:
            # An address or a header that cannot be sent.
            raise Failed(0, "invalid", error) from None
        except (OSError, http.client.HTTPException) as error:
            if is_write:
                raise Unknown(repr(error)) from None
            raise Failed(0, "unreachable", repr(error)) from None
        with response:
            outcome = response.headers.get("X-Zvgate-Outcome")
            try:
                answer = json.load(response)
            except (OSError, ValueError, http.client.HTTPException):
                answer = None
        answer = answer if isinstance(answer, dict) else {}
        if response.status == 200 and answer:
            return response.headers, answer
        # Whatever is on the way to the gateway may answer in its place; then nobody knows what became of a write.
        is_gateways = outcome or response.headers.get("Proxy-Status")
        if is_write and (outcome == "unknown" or not is_gateways or response.status == 200):
            raise Unknown(f"status {response.status}", outcome == "unknown")
        raise self._failure(response, answer, outcome)

    @staticmethod
    def _failure(response, body, outcome):
        name = str(body.get("type", "")).rsplit(":", 1)[-1] or body.get("error") or "http"
        if name == "platform_exception":
            return Refused(f"{body.get('platformCode')} {body.get('platformMessage')}")
        detail = body.get("detail") or body.get("message") or response.reason
        # 429 and 503 say when to come again; of a write, only if nothing was sent.
        may_repeat = response.status in (429, 503) and outcome in (None, "not-sent")
        after = response.headers.get("Retry-After", "")
        retry_after = int(after) if may_repeat and after.isdigit() else None
        return Failed(response.status, name, detail, response.headers.get("X-Request-Id"), retry_after)


class NotRedeemed(Exception):
    """It is known that a coupon was not redeemed."""


def main(arguments):
    url, command, *rest = [*arguments, None, None][: max(2, len(arguments))]
    commands = {"list": 1, "status": 2, "redeem": 3, "reverse": 2}
    if len(rest) != commands.get(command):
        print(__doc__, file=sys.stderr)
        return 2
    gateway = Gateway(url, os.environ.get("ZVGATE_KEY"), os.environ.get("ZVGATE_TENANT"))
    try:
        if command == "list":
            for coupon in gateway.coupons(*rest, usable=True):
                print(coupon["cardId"], coupon["status"]["name"], coupon["endAt"], coupon["title"])
        elif command == "status":
            print(gateway.status(*rest))
        elif command == "redeem":
            gateway.redeem(*rest)
            print("redeemed")
        else:
            gateway.reverse(*rest)
            print("reversed")
    except (Refused, NotRedeemed) as refused:
        print(f"refused: {refused}", file=sys.stderr)
        return 3
    except Unknown as unknown:
        print(f"unknown: {unknown}; look at its status later, before anything is repeated", file=sys.stderr)
        return 4
    except Failed as failed:
        print(f"failed: {failed}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
