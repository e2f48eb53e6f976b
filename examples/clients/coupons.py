#!/usr/bin/env python3
"""Coupons through zvgate, with Python's standard library alone.

    coupons.py URL list CUSTOMER            prints the coupons that the customer can redeem now
    coupons.py URL redeem CUSTOMER CARD ID  redeems one; ID is your own id of the redemption (bizId)
    coupons.py URL reverse ID CUSTOMER      undoes a redemption

The caller's key, if the gateway wants one, is read from ZVGATE_KEY, and the tenant's name from ZVGATE_TENANT.
Exit status: 0 done, 1 the gateway or the platform cannot do it now, 2 wrong usage, 3 the platform refused,
4 nobody knows whether it was done.
"""

import json
import os
import sys
import time
import urllib.error
import urllib.request

# Above the gateway's own limits (server.request_timeout, server.write_request_timeout): the gateway answers first.
READ_TIMEOUT = 20
WRITE_TIMEOUT = 30
# How long to go on when the gateway says "later". The gateway retries reads itself: do not retry anything else.
PATIENCE = 10
# After an unknown outcome: how often to look, with a pause between, since the platform may lag.
LOOKS = 3
LOOK_PAUSE = 2

ROUTES = "/v3/crm/coupon/"


class Failed(Exception):
    """The request failed: `name` is the gateway's name of the error, `status` the HTTP status."""

    def __init__(self, status, name, detail, request_id):
        super().__init__(f"{name} ({status}): {detail} [request {request_id}]")
        self.status, self.name = status, name


class Refused(Exception):
    """The platform answered with a business exception: the same request will get the same answer."""


class Unknown(Exception):
    """A write may have been executed, or not."""


class Gateway:
    def __init__(self, url, key=None, tenant=None):
        self.url = url.rstrip("/")
        self.headers = {"Content-Type": "application/json"}
        if key:
            self.headers["Authorization"] = f"Bearer {key}"
        if tenant:
            self.headers["X-Zvgate-Tenant"] = tenant

    def coupons(self, customer, card=None, usable=False, fresh=False):
        """A customer's coupons. `fresh`: not from the cache."""
        body = {"customerId": customer, "usable": usable}
        if card is not None:
            body["cardId"] = card
        headers = {"Cache-Control": "no-cache"} if fresh else {}
        status, _, answer = self._patiently("/v1/coupons:list", body, headers, READ_TIMEOUT)
        if not answer["complete"]:
            print("warning: there are more coupons than the platform lists", file=sys.stderr)
        return answer["coupons"]

    def redeem(self, customer, card, biz_id):
        """Redeems a coupon; returns if it was redeemed."""
        # What the customer sees may be some seconds old; what is about to be redeemed must not be.
        found = self.coupons(customer, card, fresh=True)
        if not found or found[0]["status"]["name"] != "unused":
            raise Refused(f"the coupon is {found[0]['status']['name'] if found else 'not there'}")
        params = {"bizId": biz_id, "customerId": customer, "couponsCardList": [card]}
        try:
            self._write("writeOffCoupon", params)
        except Unknown:
            for _ in range(LOOKS):
                found = self.coupons(customer, card, fresh=True)
                if found and found[0]["status"]["name"] == "redeemed":
                    return
                time.sleep(LOOK_PAUSE)
            # It may still be under way: undo whatever comes of it, so that another try starts from a known state.
            try:
                self.reverse(biz_id, customer)
            except Refused:
                pass
            raise Refused("it was not redeemed; try again with another id") from None

    def reverse(self, biz_id, customer=None):
        """Undoes a redemption. With the customer, the gateway knows whose coupons changed whatever comes of it."""
        self._write("couponReverse", {"bizId": biz_id}, customer)

    def _write(self, route, params, customer=None):
        """Sends a write. It is repeated only if the gateway says that nothing was sent."""
        headers = {"X-Zvgate-Customer": customer} if customer else {}
        status, headers, answer = self._patiently(ROUTES + route, {"params": params}, headers, WRITE_TIMEOUT)
        outcome = headers.get("X-Zvgate-Outcome")
        if outcome == "executed":
            return
        if outcome == "refused":
            # The platform writes true or "true", 0 or "0".
            raise Refused(f"the platform refused: {answer.get('code')} {answer.get('message')}")
        raise Unknown(f"outcome {outcome}, status {status}")

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
        data = json.dumps(body).encode()
        request = urllib.request.Request(self.url + path, data, {**self.headers, **headers})
        is_write = path.startswith(ROUTES)
        try:
            with urllib.request.urlopen(request, timeout=timeout) as response:
                return response.status, response.headers, json.load(response)
        except urllib.error.HTTPError as error:
            raise self._failure(error) from None
        except urllib.error.URLError as error:
            if is_write and not isinstance(error.reason, ConnectionRefusedError):
                raise Unknown(str(error.reason)) from None
            raise Failed(0, "unreachable", error.reason, None) from None
        except (OSError, ValueError) as error:
            # The answer did not come, or not whole.
            if is_write:
                raise Unknown(str(error)) from None
            raise Failed(0, "unreachable", error, None) from None

    @staticmethod
    def _failure(error):
        try:
            body = json.load(error)
        except ValueError:
            body = {}
        outcome = error.headers.get("X-Zvgate-Outcome")
        if outcome == "unknown":
            return Unknown(f"status {error.code}")
        if str(body.get("type", "")).endswith(":platform_exception"):
            return Refused(f"{body.get('platformCode')} {body.get('platformMessage')}")
        name = str(body.get("type", "")).rsplit(":", 1)[-1] or body.get("error") or "http"
        detail = body.get("detail") or body.get("message") or error.reason
        failed = Failed(error.code, name, detail, error.headers.get("X-Request-Id"))
        # 429 and 503 say when to come again; of a write, only if nothing was sent.
        may_repeat = error.code in (429, 503) and outcome in (None, "not-sent")
        after = error.headers.get("Retry-After", "")
        failed.retry_after = int(after) if may_repeat and after.isdigit() else None
        return failed


Failed.retry_after = None


def main(arguments):
    if len(arguments) < 3:
        print(__doc__, file=sys.stderr)
        return 2
    url, command, *rest = arguments
    gateway = Gateway(url, os.environ.get("ZVGATE_KEY"), os.environ.get("ZVGATE_TENANT"))
    try:
        if command == "list" and len(rest) == 1:
            for coupon in gateway.coupons(rest[0], usable=True):
                print(coupon["cardId"], coupon["status"]["name"], coupon["endAt"], coupon["title"])
        elif command == "redeem" and len(rest) == 3:
            gateway.redeem(*rest)
            print("redeemed")
        elif command == "reverse" and len(rest) == 2:
            gateway.reverse(*rest)
            print("reversed")
        else:
            print(__doc__, file=sys.stderr)
            return 2
    except Refused as refused:
        print(f"refused: {refused}", file=sys.stderr)
        return 3
    except Unknown as unknown:
        print(f"unknown: {unknown}; look later, before anything is repeated", file=sys.stderr)
        return 4
    except Failed as failed:
        print(f"failed: {failed}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
