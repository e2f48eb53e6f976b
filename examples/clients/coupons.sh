#!/usr/bin/env bash
# Coupons through zvgate, with curl and jq.
#
#   coupons.sh URL list CUSTOMER            prints the coupons that the customer can redeem now
#   coupons.sh URL status CUSTOMER CARD     prints the status of one, not from the cache
#   coupons.sh URL redeem CUSTOMER CARD ID  redeems one; ID is your own id of the redemption (bizId)
#   coupons.sh URL reverse ID CUSTOMER      undoes a redemption
#
# The caller's key, if the gateway wants one, is read from ZVGATE_KEY, and the tenant's name from ZVGATE_TENANT.
# Exit status: 0 done, 1 failed, and nothing was executed, 2 wrong usage, 3 the platform refused,
# 4 nobody knows whether it was executed.
set -euo pipefail

# Seconds. Above the gateway's own limits (server.request_timeout, server.write_request_timeout): the gateway answers first.
read_timeout=20 write_timeout=30
# For so long the gateway goes on with a write whose caller has gone (server.write_request_timeout).
write_lasts=25
# How long to go on when the gateway says "later". The gateway retries reads itself: do not retry anything else.
patience=10
# After an unknown outcome: how often to look at least, with a pause between, since the platform may lag.
looks=3 look_pause=2

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
# Why it is not known whether a write was executed, once that is so.
pending=

# Sends a body to a path: sets $status (0 without an answer) and $outcome, and leaves the answer in $work/body.
send() { # path body timeout [header]
  local code=0
  : >"$work/head" >"$work/body"
  # Neither the key nor the body is among the arguments, which every process on the machine can read.
  {
    echo 'Content-Type: application/json'
    [ -z "${ZVGATE_KEY-}" ] || printf 'Authorization: Bearer %s\n' "$ZVGATE_KEY"
    [ -z "${ZVGATE_TENANT-}" ] || printf 'X-Zvgate-Tenant: %s\n' "$ZVGATE_TENANT"
    [ -z "${4-}" ] || printf '%s\n' "$4"
  } >"$work/headers"
  status=$(printf %s "$2" | curl -q -s --noproxy '*' -o "$work/body" -D "$work/head" -w '%{http_code}' -m "$3" -H "@$work/headers" \
    --data-binary @- -- "$url$1") || code=$?
  outcome=$(header x-zvgate-outcome)
  # Not an object of JSON: not an answer of a gateway.
  jq -e 'type == "object"' "$work/body" >/dev/null 2>&1 || echo '{}' >"$work/body"
  # Of a write without an answer nobody knows anything, unless there was no connection. Whatever is on the way to the gateway may answer in
  # its place.
  case $code in
    0) [ -n "$outcome" ] || [ -n "$(header proxy-status)" ] || outcome=none ;;
    3 | 6 | 7) status=0 outcome=not-sent ;;
    *) status=0 outcome=none ;;
  esac
}

header() {
  tr -d '\r' <"$work/head" | awk -v name="$1:" 'tolower($1) == name { print $2 }' | tail -n 1
}

member() { # of the answer
  jq -r "$1 // \"\"" "$work/body"
}

# The same, repeated for as long as the gateway asks to wait: a read, or a write of which nothing was sent.
patiently() {
  local until=$((SECONDS + patience)) pause
  while send "$@"; do
    pause=$(header retry-after)
    case $status in 429 | 503) ;; *) return 0 ;; esac
    case $1:$outcome in /v1/* | *:not-sent) ;; *) return 0 ;; esac
    [[ $pause =~ ^[0-9]+$ ]] && [ $((SECONDS + pause)) -le "$until" ] || return 0
    sleep "$pause"
  done
}

refused() {
  [ -z "$pending" ] || unknown "$pending"
  echo "refused: $1" >&2
  exit 3
}

unknown() {
  echo "unknown: $1; look at its status later, before anything is repeated" >&2
  exit 4
}

# Says why a request failed, and ends.
fail() {
  [ -z "$pending" ] || unknown "$pending"
  local name
  name=$(member '(.type // "" | split(":") | last) // .error')
  [ "$name" != platform_exception ] || refused "$(member '"\(.platformCode) \(.platformMessage)"')"
  echo "failed: ${name:-unreachable} ($status): $(member '.detail // .message') [request $(header x-request-id)]" >&2
  exit 1
}

# Reads a list into $work/body.
coupons() { # request [header]
  patiently /v1/coupons:list "$1" "$read_timeout" "${2-}"
  [ "$status" = 200 ] && jq -e '.coupons | type == "array"' "$work/body" >/dev/null || fail
}

# Sets $state to the status of a coupon, not from the cache.
look() { # customer card
  coupons "$(jq -nc --arg customer "$1" --arg card "$2" '{customerId: $customer, cardId: $card}')" 'Cache-Control: no-cache'
  state=$(jq -r --arg card "$2" 'first(.coupons[] | select(.cardId == $card) | .status.name) // "not there"' "$work/body")
}

# Sends a write, and sets $result: executed, exception, or unknown. Ends if it failed, and nothing was executed. With the customer, the gateway
# knows whose coupons changed whatever comes of it.
write() { # route params customer
  patiently "/v3/crm/coupon/$1" "{\"params\":$2}" "$write_timeout" "X-Zvgate-Customer: $(jq -nr --arg id "$3" '$id | tojson')"
  case $outcome in
    executed) result=executed ;;
    refused)
      # The platform writes true or "true"; 110004 and 110007 mean throttled and busy: it did nothing.
      jq -e '(.status | tostring == "true") and ([.code | tostring] | inside(["110004", "110007"]) | not)' "$work/body" >/dev/null || {
        [ -z "$pending" ] || unknown "$pending"
        echo "failed: $(said)" >&2
        exit 1
      }
      result=exception
      ;;
    unknown | none) result=unknown ;;
    *) fail ;;
  esac
}

said() {
  member '"the platform refused: \(.code) \(.message)"'
}

cmd_list() {
  coupons "$(jq -nc --arg customer "$1" '{customerId: $customer, usable: true}')"
  jq -r '.coupons[] | "\(.cardId) \(.status.name) \(.endAt) \(.title)"' "$work/body"
  [ "$(jq .complete "$work/body")" = true ] || echo "warning: there are more coupons than the platform lists" >&2
}

cmd_status() {
  look "$1" "$2"
  echo "$state"
}

cmd_redeem() {
  # What the customer sees may be some seconds old; what is about to be redeemed must not be.
  look "$1" "$2"
  [ "$state" = unused ] || refused "the coupon is $state"
  local sent=$SECONDS number=0 is_over
  write writeOffCoupon "$(jq -nc --arg customer "$1" --arg card "$2" --arg id "$3" '{bizId: $id, customerId: $customer, couponsCardList: [$card]}')" "$1"
  case $result in
    executed) echo redeemed && return ;;
    exception) refused "$(said)" ;;
  esac
  pending="status $status, outcome $outcome"
  [ "$outcome" = unknown ] && is_over=1 || is_over=
  while [ "$number" -lt "$looks" ] || { [ -z "$is_over" ] && [ "$SECONDS" -le $((sent + write_lasts)) ]; }; do
    look "$1" "$2"
    [ "$state" != redeemed ] || { echo redeemed && return; }
    number=$((number + 1))
    sleep "$look_pause"
  done
  # It may still come: undo it, so that another try starts from a known state. If there is nothing to undo, the platform says so.
  write couponReverse "$(jq -nc --arg id "$3" '{bizId: $id}')" "$1"
  [ "$result" != unknown ] || unknown "$pending"
  pending=
  refused "it was not redeemed; try again with another id"
}

cmd_reverse() {
  write couponReverse "$(jq -nc --arg id "$1" '{bizId: $id}')" "$2"
  case $result in
    executed) echo reversed ;;
    exception) refused "$(said)" ;;
    *) unknown "status $status, outcome $outcome" ;;
  esac
}

url=${1-}
url=${url%/}
case "${2-} $#" in
  "list 3" | "status 4" | "redeem 5" | "reverse 4") "cmd_$2" "${@:3}" ;;
  *) sed -n '2,/^set/s/^# \{0,1\}//p' "$0" >&2 && exit 2 ;;
esac
