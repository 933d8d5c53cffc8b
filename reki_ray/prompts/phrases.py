"""Phrases with which models decline, or say that they do not know, by language.

Regular expressions in lower case, without flags or capturing groups. An apology counts as a
refusal only if a negation follows: titles contain apologies.
"""

# ruff: noqa: RUF001  # other scripts have letters that look like Latin ones

from __future__ import annotations

from typing import Final, NamedTuple


class Refusal(NamedTuple):
    """How models decline in a language.

    Attributes:
        cannot: Phrases that refuse by themselves, such as `I cannot help`.
        sorry: Apologies.
        negation: The speaker's negation that turns an apology before it into a refusal.
    """

    cannot: str
    sorry: str
    negation: str


_ENGLISH_VERBS = (
    "help|assist|provide|answer|fulfil|fulfill|comply|discuss|create|generate|continue|describe"
    "|support|engage|(?:do|share|give)(?: you)? (?:that|this|it|so|any|details|information|an?)"
)
REFUSALS: Final[dict[str, Refusal]] = {
    "en": Refusal(
        r"i(?:'m| am)(?: really| very| so)? (?:unable|not able)\b"
        r"|sorry, (?:but )?i (?:ca|could|am|do|must|have|wo|will|need)\w*"
        r"|i(?:'m| am)(?: really| very| so| truly)? sorry(?:[.]|,? but\b)"
        r"|i (?:can(?:'t|not| not)|won't|will not|decline|am unable to)"
        rf"(?: \w+){{0,2}} (?:{_ENGLISH_VERBS})\b"
        r"|i (?:must|have to|need to|will have to)(?: \w+){0,2} (?:decline|refuse)\b"
        r"|i(?:'d| would)(?: \w+)? (?:rather|prefer) not\b"
        r"|as an? (?:ai|artificial intelligence)\b[^.\n]{0,60}\bi\b"
        r"|as an? [^.\n]{0,12}language model\b"
        r"|i(?:'m| am) (?:just )?an? (?:ai|(?:large )?language model)\b"
        r"|i (?:do not|don't) have (?:\w+ ){0,3}(?:information|knowledge|data|access|context)\b"
        r"|(?:against|violates?) (?:my|our|the|content|safety|usage)(?: \w+)?"
        r" (?:guidelines|policy|policies|programming)\b"
        r"|(?:against|violates?) (?:my|our|the) (?:guidelines|policy|policies|programming)\b"
        r"|(?:request|content) (?:was|is|has been) (?:blocked|rejected|flagged|not allowed)\b"
        r"|can(?:not|'t) (?:assist|help) with (?:that|this)\b",
        r"(?:i(?:'m| am)(?: really| very| so| truly)? sorry|i apologi[sz]e|unfortunately,? i)\b",
        r"(?:\w+n't|not|cannot|unable|decline|(?:have|is|are) no)\b",
    ),
    "ar": Refusal(
        r"(?:لا|لن) (?:أستطيع|يمكنني|أقدر|أتمكن)|لست قادر",
        r"(?:آسف|أعتذر|عذرا|عذرًا|للأسف)",
        r"(?:(?:لا|لن|لم) (?:أ|يمكن)|لست|ليس لدي)",
    ),
    "cs": Refusal(
        r"(?:nemohu|nemůžu|nedokážu)(?: \w+){0,4} (?:pom|poskyt|odpov|splnit|vyhov|popsat|sdílet)",
        r"(?:omlouvám se|je mi líto|bohužel)",
        r"(?:ne(?:mohu|můžu|mám|dokážu|znám|jsem|vím))\b",
    ),
    "de": Refusal(
        r"(?:ich (?:kann|darf)|(?:kann|darf) ich) (?:\w+ ){0,6}nicht (?:\w+ ){0,3}\w*"
        r"(?:helfen|antworten|geben|nachkommen|beschreiben|stellen|liefern|füllen|sagen)\b"
        r"|leider (?:kann|darf|habe) ich\b|als (?:ki|ai|sprachmodell)\b",
        r"(?:es tut mir leid|entschuldigung|tut mir leid)",
        r"(?:ich|mir|das|diese\w*)\b[^\n]{0,60}\b(?:nicht|kein(?:e[mnrs]?)?)\b",
    ),
    "es": Refusal(
        r"no puedo(?: \w+){0,2} (?:ayudar|proporcionar|responder|cumplir|describir|ofrecer|generar)"
        r"|como (?:modelo de lenguaje|ia|inteligencia artificial)\b",
        r"(?:lo siento|lo lamento|disculpa|perdón|lamentablemente)",
        r"no (?:puedo|tengo|sé|dispongo|conozco|es posible|me es posible|estoy)\b",
    ),
    "fi": Refusal(
        r"en (?:voi|pysty)(?: \w+){0,4} (?:autta|vastata|antaa|tarjota|kuvailla|täyttää)",
        r"(?:olen pahoillani|pahoittelen|valitettavasti|anteeksi)",
        r"(?:en (?:voi|pysty|tiedä|tunne)|ei ole|minulla ei)\b",
    ),
    "fr": Refusal(
        r"je ne (?:peux|suis) pas(?: [\w']+){0,4} (?:aider|répondre|fournir|satisfaire|décrire"
        r"|donner|traiter|partager)\b|je suis dans l'impossibilité"
        r"|en tant que? (?:modèle de langage|ia|qu'ia)\b",
        r"(?:je suis désolée?|désolée?|je regrette|je m'excuse|malheureusement)",
        r"(?:je (?:ne|n'\w+)|il (?:ne m'est|m'est impossible))\b",
    ),
    "hi": Refusal(
        r"मैं [^।,]{0,60}(?:नहीं (?:कर|दे|बता) सकत|असमर्थ)",
        r"(?:क्षमा करें|माफ़ करें|माफ करें|मुझे खेद है)",
        r"(?:नहीं|असमर्थ)",
    ),
    "id": Refusal(
        r"saya tidak (?:dapat|bisa)(?: \w+){0,4} (?:membantu|memberikan|menjawab|memenuhi"
        r"|menjelaskan)",
        r"(?:maaf|mohon maaf|saya minta maaf)",
        r"(?:saya (?:\w+ )?tidak|tidak (?:dapat|bisa))\b",
    ),
    "it": Refusal(
        r"non posso(?: \w+){0,2} (?:aiut|fornir|rispond|soddisf|descriv)"
        r"|come (?:modello linguistico|ia|intelligenza artificiale)\b",
        r"(?:mi dispiace|mi spiace|purtroppo)",
        r"non (?:posso|ho|so|sono|dispongo|conosco|è possibile)\b",
    ),
    "ja": Refusal(
        r"お(?:手伝い|答え|応え)(?:する(?:こと)?は?)?(?:でき|出来)(?:ません|かね)"
        r"|(?:回答|提供|対応)(?:する(?:こと)?(?:は|が))?(?:でき|出来)(?:ません|かね)"
        r"|申し訳(?:ありません|ございません)",
        r"(?:すみません|申し訳|ごめんなさい|恐れ入りますが)",
        r"(?:ません|できない|かねます)",
    ),
    "ko": Refusal(
        r"(?:도와드릴|답변할|답변드릴|제공할|도움을 드릴|설명할) 수(?:가|는)? 없",
        r"(?:죄송|미안|유감)",
        r"(?:없|않|못|어렵)",
    ),
    "nl": Refusal(
        r"ik kan (?:\w+ ){0,6}niet (?:help|beantwoord|gev|voldo|beschrijv)|helaas kan ik\b",
        r"(?:het spijt me|sorry|mijn excuses)",
        r"(?:ik|dit|dat)\b[^\n]{0,60}\b(?:niet|geen)\b",
    ),
    "pl": Refusal(
        r"nie (?:mogę|jestem w stanie)(?: \w+){0,3} (?:pom|udziel|odpow|spełni|opisa|dostarcz)",
        r"(?:przepraszam|przykro mi|niestety)",
        r"nie (?:mogę|mam|jestem|znam|wiem|potrafię)\b",
    ),
    "pt": Refusal(
        r"não posso(?: \w+){0,2} (?:ajudar|fornecer|responder|atender|descrever)"
        r"|como (?:modelo de linguagem|ia|uma ia)\b",
        r"(?:sinto muito|lamento|desculpe|desculpa|peço desculpas?|infelizmente)",
        r"não (?:posso|tenho|sei|consigo|conheço|é possível)\b",
    ),
    "ru": Refusal(
        r"я не (?:могу|в состоянии)(?: \w+){0,4} (?:помо|предостав|ответ|выполн|опис|обсужд|дать)"
        r"|не могу (?:помочь|предоставить|ответить|выполнить|обсуждать) (?:с |на |вам|эт|так)",
        r"(?:извините|простите|прошу прощения|мне (?:очень )?жаль|к сожалению)",
        r"(?:не (?:могу|знаю|имею|располагаю|в состоянии)|нет (?:информации|данных|доступа))",
    ),
    "sv": Refusal(
        r"jag kan (?:tyvärr )?inte (?:\w+ ){0,3}(?:hjälpa|svara|ge|tillhandahålla|beskriva)"
        r"|tyvärr kan jag\b",
        r"(?:jag är ledsen|förlåt|jag beklagar|tyvärr|ursäkta)",
        r"(?:jag|det)\b[^\n]{0,60}\b(?:inte|ingen|inga)\b",
    ),
    "tr": Refusal(
        r"(?:yardımcı olam|cevap verem|yanıt verem|sağlayam|yanıtlayam|cevaplayam)\w*",
        r"(?:üzgünüm|özür dilerim|maalesef|kusura bakmayın)",
        r"\w*[ae]m(?:am|em|ıy|iy)\w*|değil\w*|yok\b",
    ),
    "uk": Refusal(
        r"я не (?:можу|в змозі)(?: \w+){0,4} (?:допомо|надати|відпов|викона|опис|обговор)",
        r"(?:вибачте|перепрошую|мені (?:дуже )?шкода|на жаль)",
        r"(?:не (?:можу|знаю|маю|в змозі)|немає (?:інформації|даних|доступу))",
    ),
    "vi": Refusal(
        r"tôi không thể(?: \w+){0,3} (?:giúp|cung cấp|trả lời|đáp ứng|hỗ trợ|mô tả)",
        r"(?:xin lỗi|tôi rất tiếc|rất tiếc)",
        r"(?:tôi không|không thể)\b",
    ),
    "zh": Refusal(
        r"我(?:无法|無法|不能|没有办法)[^，。,]{0,8}(?:帮|幫|提供|回答|满足|滿足|协助|描述|生成|完成)"
        r"|作为(?:一个|一個)?(?:ai|人工智能|语言模型)",
        r"(?:对不起|對不起|抱歉|很遗憾)",
        r"(?:无法|無法|不能|没有|沒有|不便|不支持)",
    ),
}  # fmt: skip

UNKNOWN: Final[dict[str, str]] = {
    "en": r"unknown|unclear|undetermined|undefined|unidentified|unspecified|undisclosed"
    r"|null|nil|nan|tbd|tba|n/?a"
    r"|none (?:known|specified|available|provided|mentioned|given|stated)"
    r"|no (?:information|data|details|answer|idea)|nothing(?: is)? known"
    r"|(?:insufficient|not enough) (?:information|data|details|context)"
    r"|not (?:known|specified|available|applicable|provided|mentioned|given|stated|sure|certain"
    r"|determined|defined|identified|disclosed)"
    r"|i(?:'m| am) (?:not sure|unsure|not certain)|(?:i )?(?:do not|don't) know"
    r"|(?:i )?(?:cannot|can't|can not|could not|couldn't) (?:be )?(?:determined?|tell|told|known?"
    r"|say|said|identify|identified)",
    "ar": r"غير (?:معروفة?|محددة?|متوفرة?|متاحة?)|لا أعرف|لا توجد معلومات",
    "cs": r"neznám[ýáéo]|není známo|neuvedeno|nevím",
    "da": r"ukendt|ikke (?:kendt|angivet|oplyst)",
    "de": r"unbekannt|unklar|nicht (?:bekannt|angegeben|verfügbar)|keine (?:angaben?"
    r"|informationen|daten)|(?:ich )?weiß (?:ich )?nicht",
    "el": r"άγνωστ(?:ο|ος|η)|δεν (?:είναι γνωστό|γνωρίζω)",
    "es": r"desconocid[oa]s?|no (?:especificad[oa]|disponible|se sabe|(?:lo )?sé)|sin"
    r" (?:información|datos|especificar)",
    "fi": r"tuntematon|ei (?:tiedossa|tietoa|saatavilla)|en tiedä",
    "fr": r"inconnue?s?|non (?:spécifiée?|précisée?|disponible|connue?)|indéterminée?"
    r"|(?:pas|aucune) (?:d')?informations?|je ne sais pas",
    "he": r"לא (?:ידועה?|ידוע|זמין)|אין מידע",
    "hi": r"अज्ञात|पता नहीं|उपलब्ध नहीं|जानकारी नहीं",
    "id": r"tidak (?:diketahui|tersedia|disebutkan|ada informasi|tahu)",
    "it": r"sconosciut[oaie]|ignot[oa]|non (?:specificat[oa]|disponibile|not[oa]|(?:lo )?so)"
    r"|nessuna informazione",
    "ja": r"不明|不詳|未詳|未知|わかりません|分かりません|情報なし|該当なし",
    "ko": r"알 수 없음|알려지지 않음|미상|불명|모름|정보 없음",
    "nl": r"onbekend|onduidelijk|niet (?:bekend|gespecificeerd|beschikbaar)|geen informatie",
    "pl": r"nieznan[yae]|nie (?:wiadomo|określono|podano|wiem)|brak (?:danych|informacji)",
    "pt": r"desconhecid[oa]s?|não (?:especificad[oa]|disponível|informad[oa]|sei)"
    r"|sem informaç(?:ão|ões)",
    "ru": r"неизвестн(?:о|ый|ая|ое|ы)|неизвестен|не (?:указано?|определено|известно|знаю)"
    r"|нет (?:данных|информации)",
    "sv": r"okän[dt]|inte (?:känt|angivet|tillgängligt)|ingen information|vet ej",
    "th": r"ไม่ทราบ|ไม่มีข้อมูล|ไม่ระบุ",
    "tr": r"bilinm(?:iyor|eyen)|belirsiz|belirtilmemiş|bilgi yok",
    "uk": r"невідом(?:о|ий|а|е)|не (?:вказано|визначено|знаю)|немає (?:даних|інформації)",
    "vi": r"không (?:rõ|biết|xác định|có thông tin)|chưa (?:rõ|biết)",
    "zh": r"未知|不详|不詳|不明|不清楚|未提供|未指明|不确定|不確定|不知道|暂无"
    r"|(?:没有|沒有|无)信息",
}
ALONE: Final = r"unsure|various|varied|misc(?:ellaneous)?|several|なし|없음|无|無"
"""Words that say nothing when they are alone: `unsure, shy` describes a person."""
NOTHING: Final = frozenset({"none", "nothing", "no", "keine", "aucun", "ninguno", "nenhum", "нет"})
"""Words that are informative for one factor, such as awards, but not for all."""
UNSPACED: Final = frozenset({"ja", "ko", "zh"})
"""Languages that write words without spaces."""
