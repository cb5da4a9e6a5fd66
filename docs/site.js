// Tables that scroll can be scrolled by keyboard.
window.addEventListener("load", () =>
  setTimeout(() => {
    for (const wrap of document.querySelectorAll(".md-typeset__scrollwrap")) {
      wrap.tabIndex = 0
    }
  }, 200),
)
