// A one-time link is used by the browser that opened it, not by whatever else fetches its address.
document.getElementById("link").requestSubmit();
