-- POSTs for KEYS customers: uniformly distributed, or by Zipf with exponent 1 if ZIPF is set.
local keys = tonumber(os.getenv("KEYS") or "10000")
local zipf = os.getenv("ZIPF")
local path = os.getenv("ROUTE") or "/v3/crm/coupon/getCustomerCoupons"
wrk.method = "POST"
wrk.headers["Content-Type"] = "application/json"
local threads = 0
function setup(thread)
  threads = threads + 1
  thread:set("number", threads)
end
function init()
  -- Each run requests other customers, so that entries of an earlier run are not hit.
  math.randomseed(os.time() * 64 + number)
end
function request()
  local key
  if zipf then
    key = math.floor(math.exp(math.random() * math.log(keys + 1)))
  else
    key = math.random(1, keys)
  end
  return wrk.format(nil, path, nil, string.format('{"params":{"customerId":"38393309%010d","useStatus":"","cardId":""}}', key))
end
